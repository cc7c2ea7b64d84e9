"""Whether the tokenizers made from GGUF files equal the originals. Writes bench/results/gguf_tokenizers.json.

    python bench/gguf_tokenizers.py --smollm2 FILE.gguf --gemma FILE.gguf --qwen FILE.gguf --originals FOLDER

SmolLM2 and Qwen are held against their original files in `smollm2/` and `qwen2.5-0.5b-instruct/` of FOLDER. Of Gemma
there is no original here: its peer is SentencePiece's rule, written below, on the vocabulary that the GGUF file
carries. Every text is encoded as a prompt is, with the special tokens that the tokenizer puts around it.
"""

import argparse
import heapq
import json
import platform
import re
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from gguf import GGUFReader, TokenType
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetrap import __version__
from finetrap.gguf import dequantised
from finetrap.presets import file_sha256
from finetrap.provenance import processor
from finetrap.task import get_task

Encode = Callable[[list[str]], list[list[int]]]

HARD = (
    # spaces, tabs, line breaks; Gemma's longest token of spaces or line breaks has 31
    *("", " ", "a", " a", "a ", "  a", "a  b", "a   b", "\n", "\n\n", "a\nb", "a\n\n\n\nb", "a \n b", "a\r\nb", "\r"),
    *("\t", "\t\ta", "a\t b", " \t \n\t ", "a" + " " * 31 + "b", "a" + " " * 40 + "b", "\n" * 40, "\t" * 40),
    # numbers and punctuation
    *("0", "7", "42", "2024", "1234567890", "3.14159", "1,234,567.89", "$1,000", "50%", "1e-05", "-7", "12:30"),
    *("\u00b2\u00b3\u00bd\u2167\u0663", "I'm, you're, he'll, we've, they'd, it's", "DON'T IT'S"),
    *("\u2019s \u2019t", "\u201cquoted\u201d \u2014 dash \u2013 \u2026", "....", "?!?!", "-----", "= = ="),
    # emoji, among them joined and coloured ones
    *("\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467 family", "\U0001f44d\U0001f3fd", "\U0001f9ca" * 3),
    *("\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7", "\u2603\ufe0f \u2764"),
    # scripts
    *("你好,世界。", "日本語のテキストです", "한국어 문장", "สวัสดีครับ", "नमस्ते दुनिया", "שלום עולם", "مرحبا بالعالم"),
    *("\uff8a\uff9d\uff76\uff78", "Stra\u00dfe \u0130stanbul", "\U00020000", "Donaudampfschifffahrtsgesellschaft"),
    # the same letters composed and decomposed
    *("\u00e9 \u00fc \u00f1 \u00e5", "e\u0301 u\u0308 n\u0303 a\u030a", "cafe\u0301s", "\u212b A\u030a"),
    *("\ufb01 \ufb00", "\uac01\u1100\u1161\u11a8", "\u1112\u1161\u11ab", "\u1e9b\u0323"),
    # what cannot be seen
    *("\u200b", "a\u00a0b", "\ufeffa", "a\u3000b", "\x00", "\x07\x1b[0m", "\ud7ff\ue000\U0010ffff"),
    # code and addresses
    *("def f(x):\n    return x ** 2  # square\n", "if (a && b) { return a->c; }\n\t\tx += 1;\n"),
    *("<div class='a'>b</div>", "SELECT * FROM t WHERE a = 'b';", '{"a": [1, 2.0, null]}', "$\\frac{a}{b}$"),
    *("#### 7", "#tag @you", "a" * 40, "snake_case camelCase", "a_b-c/d\\e"),
    *("https://example.org/a_b?c=1&d=%20#e", "me@example.org", "C:\\Users\\me", "/usr/bin/env", "v1.2.3-rc.4+5"),
    # special tokens written in text
    *("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "a<|im_end|>", "<|endoftext|>", "a <|im_end|> b"),
    *("<bos>", "a<eos>b", "<start_of_turn>user\nhi<end_of_turn>\n", "<unused7>", "<0x41>", "<pad><unk><mask>"),
    *("<tool_call>\n{}\n</tool_call>", "<|fim_prefix|>a<|fim_suffix|>", "<repo_name>", "<s>a</s>", "[INST] a [/INST]"),
    *("<|im_end", "[PAD151665]", "<b>bold</b><h1>"),
)  # fmt: skip


class SentencePiece:
    """SentencePiece's byte-pair rule (arXiv:1808.06226), read straight from a GGUF file.

    User-defined tokens stand whole, the longest first, and so do control tokens, as in Transformers and llama.cpp.
    In what lies between, the adjacent pair whose joined string has the highest score is merged, the leftmost among
    equals, until no joined string is a token. A character that is none becomes its UTF-8 bytes.
    """

    def __init__(self, reader: GGUFReader) -> None:
        tokens, scores, types = (_field(reader, name) for name in ("tokens", "scores", "token_type"))
        rows = list(zip(tokens, range(len(tokens)), scores, types, strict=True))
        whole = {TokenType.CONTROL, TokenType.USER_DEFINED}
        self.whole = {token: i for token, i, _, kind in rows if kind in whole}
        self.ids = {token: i for token, i, _, kind in rows if kind == TokenType.NORMAL}
        self.scores = {token: score for token, _, score, kind in rows if kind == TokenType.NORMAL}
        self.bytes = {int(token[1:-1], 16): i for token, i, _, kind in rows if kind == TokenType.BYTE}
        self.split = re.compile("(" + "|".join(map(re.escape, sorted(self.whole, key=len, reverse=True))) + ")")
        self.first = [_field(reader, "bos_token_id")] if _field(reader, "add_bos_token") else []

    def __call__(self, texts: list[str]) -> list[list[int]]:
        return [self.first + [i for part in self.split.split(text) for i in self._part(part)] for text in texts]

    def _part(self, text: str) -> list[int]:
        if text in self.whole:
            return [self.whole[text]]
        ids: list[int] = []
        for symbol in self._merged(text.replace(" ", "▁")):
            ids.extend([self.ids[symbol]] if symbol in self.ids else [self.bytes[byte] for byte in symbol.encode()])
        return ids

    def _merged(self, text: str) -> list[str]:
        symbols = list(text)
        right = list(range(1, len(symbols) + 1))
        left = list(range(-1, len(symbols)))
        best: list[tuple[float, int, str]] = []

        def offer(i: int) -> None:
            if i >= 0 and right[i] < len(symbols):
                joined = symbols[i] + symbols[right[i]]
                if joined in self.scores:
                    heapq.heappush(best, (-self.scores[joined], i, joined))

        for i in range(len(symbols)):
            offer(i)
        while best:
            _, i, joined = heapq.heappop(best)
            after = right[i]
            # An offer is stale once either of its two symbols was merged.
            if not symbols[i] or after == len(symbols) or symbols[i] + symbols[after] != joined:
                continue
            symbols[i], symbols[after] = joined, ""
            right[i] = right[after]
            left[right[i]] = i
            offer(left[i])
            offer(i)
        return [symbol for symbol in symbols if symbol]


def _field(reader: GGUFReader, name: str) -> list | int | bool:
    return reader.get_field(f"tokenizer.ggml.{name}").contents()


def _texts() -> dict[str, list[str]]:
    gsm8k, wikitext2, hellaswag = (
        get_task(name).load(split) for name, split in (("gsm8k", "train"), ("wikitext2", "test"), ("hellaswag", "test"))
    )
    return {
        "GSM8K train, questions and answers": [text for row in gsm8k for text in (row.question, row.reference)],
        "WikiText-2 test": [row.question for row in wikitext2],
        "HellaSwag, scenes and endings": [text for row in hellaswag for text in (row.question, *row.choices)],
        "hard strings": list(HARD),
    }


def _row(model: str, against: str, what: str, texts: list[str], ours: list, theirs: list) -> dict:
    differing = [i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]]
    first = differing[0] if differing else None
    row = {
        "model": model,
        "against": against,
        "what": what,
        "texts": len(texts),
        "tokens": sum(len(ids) if isinstance(ids, list) else 1 for ids in ours),
        "differing_texts": len(differing),
        "first_difference": None
        if first is None
        else {"text": texts[first][:200], "ours": ours[first], "theirs": theirs[first]},
    }
    print(f"{model}: {what}: {row['differing_texts']} of {row['texts']} differ from {against}")
    return row


def _compare(path: Path, against: str, peer: Callable[[GGUFReader], Encode]) -> tuple[PreTrainedTokenizerBase, list]:
    tokenizer = AutoTokenizer.from_pretrained(dequantised(path, file_sha256(path)))
    reader = GGUFReader(path)
    encode = peer(reader)
    rows = [
        _row(path.stem, against, what, texts, tokenizer(texts)["input_ids"], encode(texts))
        for what, texts in _texts().items()
    ]
    vocabulary = _field(reader, "tokens")
    if _field(reader, "model") == "llama":
        # llama.cpp spells runs of spaces with spaces, and everything else as SentencePiece does.
        vocabulary = [token if token.strip(" ") else token.replace(" ", "▁") for token in vocabulary]
    ours = tokenizer.convert_ids_to_tokens(list(range(len(vocabulary))))
    rows.append(_row(path.stem, "tokenizer.ggml.tokens", "vocabulary, id by id", vocabulary, ours, vocabulary))
    return tokenizer, rows


def _templates(model: str, against: str, ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> dict:
    turn = [{"role": "user", "content": "What is 2 + 2?"}]
    talks = [turn, [{"role": "system", "content": "Be brief."}, *turn, {"role": "assistant", "content": "4"}, *turn]]
    rendered = [
        [[tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)] for talk in talks]
        for tokenizer in (ours, theirs)
    ]
    return _row(model, against, "chat template, one turn; system and two turns", [str(t) for t in talks], *rendered)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare tokenizers made from GGUF files with the originals.")
    for name in ("smollm2", "gemma", "qwen", "originals"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()

    smollm2 = Tokenizer.from_file(str(given.originals / "smollm2" / "tokenizer.json"))
    qwen = AutoTokenizer.from_pretrained(given.originals / "qwen2.5-0.5b-instruct")
    _, smollm2_rows = _compare(
        given.smollm2,
        "tokenizer.json of SmolLM2-135M-Instruct",
        lambda _: lambda texts: [encoding.ids for encoding in smollm2.encode_batch(texts)],
    )
    made, qwen_rows = _compare(
        given.qwen, "vocab.json and merges.txt of Qwen2.5-0.5B-Instruct", lambda _: lambda t: qwen(t)["input_ids"]
    )
    template = _templates(given.qwen.stem, "tokenizer_config.json of Qwen2.5-0.5B-Instruct", made, qwen)
    _, gemma_rows = _compare(given.gemma, "SentencePiece's rule on the GGUF's own vocabulary", SentencePiece)
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": processor(),
        "versions": {
            "finetrap": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("transformers", "tokenizers", "gguf")},
        },
        "rows": [*smollm2_rows, *qwen_rows, template, *gemma_rows],
    }
    path = Path(__file__).parent / "results" / "gguf_tokenizers.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
