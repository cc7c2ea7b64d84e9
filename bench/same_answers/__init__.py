"""Whether finetrap's engine gives the answers of Transformers, PEFT, TRL and a plain loop: `make verify`.

A matrix of cells, each a function that computes the same thing twice, once with finetrap's public functions and once
without any of its code, and tells how far the two lie apart.
"""
