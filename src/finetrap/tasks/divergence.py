"""Divergence: how far a model moved from the untouched one, on fixed general and chat text."""

from finetrap.task import Example, Split, Task, Turn, get_task, packaged_rows, task

GENERAL_TEXTS = 24
"""As many as there are conversations; both together are some 5,000 tokens, read by both models."""


def _load(split: Split) -> tuple[Example, ...]:
    texts = get_task("wikitext2").load(split)
    step = len(texts) // GENERAL_TEXTS
    general = [Example(f"general-{i}", text.question) for i, text in enumerate(texts[: step * GENERAL_TEXTS : step])]
    chat = []
    for row in packaged_rows("chat", split):
        *said, asked, answer = (Turn(**message) for message in row["messages"])
        chat.append(Example(f"chat-{row['id']}", asked.content, answer.content, turns=tuple(said)))
    return (*general, *chat)


@task
def divergence() -> Task:
    """KL(untouched || adapted) in nats a token, on 24 windows of WikiText-2 and 24 conversations.

    Of a conversation the last answer and its end of turn are compared, through the model's chat template where it has
    one; of a window all of it.
    """
    return Task(
        name="divergence",
        summary="how far a model moved from the untouched one, on general and chat text; test only",
        kind="divergence",
        license="CC BY-SA 3.0 (general), Apache-2.0 (chat)",
        load=_load,
        splits=("test",),
        siblings=frozenset({"divergence"}),
    )
