"""Whether an answer does what it was told, where that can be verified (IFEval, arXiv:2311.07911, appendix A).

Each check says what lm-evaluation-harness's of that name says. Those that need a model of a language are left out:
`language:response_language`, `change_case:english_capital` and `english_lowercase` (language detection),
`length_constraints:number_sentences` and `change_case:capital_word_frequency` (a tokenizer of sentences and words).
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Check = Callable[..., bool]


def _holds(count: int, relation: str, threshold: int) -> bool:
    return count < threshold if relation == "less than" else count >= threshold


def _times(word: str, answer: str) -> int:
    return len(re.findall(re.escape(word), answer, flags=re.IGNORECASE))


def _existence(answer: str, keywords: Sequence[str]) -> bool:
    return all(_times(word, answer) for word in keywords)


def _frequency(answer: str, keyword: str, frequency: int, relation: str) -> bool:
    return _holds(_times(keyword.strip(), answer), relation, frequency)


def _forbidden(answer: str, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", answer, flags=re.IGNORECASE) for word in forbidden_words)


def _letters(answer: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _holds(answer.lower().count(letter.strip().lower()), let_relation, let_frequency)


def _words(answer: str, num_words: int, relation: str) -> bool:
    return _holds(len(re.findall(r"\w+", answer)), relation, num_words)


def _paragraphs(answer: str, num_paragraphs: int) -> bool:
    parts = re.split(r"\s?\*\*\*\s?", answer)
    inner = [bool(part.strip()) for part in parts[1:-1]]
    ends = [bool(part.strip()) for part in {0: parts[0], len(parts) - 1: parts[-1]}.values()]
    return all(inner) and sum(inner) + sum(ends) == num_paragraphs


def _nth_paragraph(answer: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = answer.split("\n\n")
    count = sum(bool(part.strip()) for part in parts)
    if count != num_paragraphs or nth_paragraph > count or not parts[nth_paragraph - 1].strip():
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return re.split(r"[.,?!'\"]", word)[0].lower() == first_word.lower()


def _placeholders(answer: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", answer)) >= num_placeholders


def _postscript(answer: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(known.get(marker, re.escape(marker.lower())), answer.lower()) is not None


def _bullets(answer: str, num_bullets: int) -> bool:
    stars = re.findall(r"^\s*\*[^\*].*$", answer, flags=re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", answer, flags=re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def _options(answer: str) -> bool:
    return any(f"My answer is {word}." in answer for word in ("yes", "no", "maybe"))


def _highlights(answer: str, num_highlights: int) -> bool:
    marked = [*re.findall(r"\*[^\n\*]*\*", answer), *re.findall(r"\*\*[^\n\*]*\*\*", answer)]
    return sum(bool(text.strip("*").strip()) for text in marked) >= num_highlights


def _sections(answer: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"\s?{re.escape(section_spliter.strip())}\s?\d+\s?", answer)) >= num_sections


def _json(answer: str) -> bool:
    text = answer.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _title(answer: str) -> bool:
    return any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", answer))


def _two_responses(answer: str) -> bool:
    parts = [part.strip() for part in answer.split("******")]
    said = [part for part in parts if part]
    return all(parts[1:-1]) and len(said) == 2 and said[0] != said[1]


def _repeats(answer: str, prompt_to_repeat: str) -> bool:
    return answer.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _ends(answer: str, end_phrase: str) -> bool:
    return answer.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quoted(answer: str) -> bool:
    text = answer.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _no_comma(answer: str) -> bool:
    return "," not in answer


CHECKS: Mapping[str, Check] = {
    "keywords:existence": _existence,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letters,
    "length_constraints:number_words": _words,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": _options,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeats,
    "startend:end_checker": _ends,
    "startend:quotation": _quoted,
    "punctuation:no_comma": _no_comma,
}
"""By the data set's name of the instruction; keyword arguments are its parameters there."""


def follows(answer: str, instruction: str, parameters: Mapping[str, Any]) -> bool:
    """Whether an answer follows one instruction; an empty one follows none.

    `parameters` that are None say nothing, as in the data set's own rows.
    """
    given = {key: value for key, value in parameters.items() if value is not None}
    return bool(answer.strip()) and CHECKS[instruction](answer, **given)
