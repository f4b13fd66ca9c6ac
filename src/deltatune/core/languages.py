"""Languages: how tokenizers of translation models are told what a text is written in, and what to write.

mBART, NLLB, M2M-100    a code among the special tokens of source and target   de_DE, deu_Latn, de
Marian, several targets a word before the source                               >>deu<<
T5, BART, Marian        none; T5 is told in words, by a prefix
"""

from collections.abc import Sequence
from typing import Any

from deltatune.core.errors import SettingsError, did_you_mean


def set_languages(tokenizer: Any, source: str | None, target: str | None) -> str:
    """Sets up a tokenizer and returns what goes before every source text.

    Raises `SettingsError` for a code the tokenizer does not know, one it has no use for, and a missing one.
    """
    if getattr(tokenizer, "src_lang", None) is not None:
        _codes(tokenizer, source, target)
        return ""
    words = getattr(tokenizer, "supported_language_codes", None) or ()
    name = type(tokenizer).__name__
    if source is not None:
        raise SettingsError(f"task.source_language has no effect: {name} is told no language", hint="take it out")
    if words:
        return f">>{_known(name, 'target_language', target, [word.strip('<>') for word in words])}<< "
    if target is not None:
        raise SettingsError(
            f"task.target_language has no effect: {name} is told no language",
            hint="take it out; models like T5 are told in words, by task.prefix",
        )
    return ""


def _codes(tokenizer: Any, source: str | None, target: str | None) -> None:
    """Both languages as special tokens."""
    known = list(getattr(tokenizer, "lang_code_to_id", None) or tokenizer.extra_special_tokens)
    name = type(tokenizer).__name__
    tokenizer.src_lang = _known(name, "source_language", source, known)
    tokenizer.tgt_lang = _known(name, "target_language", target, known)


def _known(name: str, setting: str, code: str | None, known: Sequence[str]) -> str:
    """The code; raises `SettingsError` where it is none of those a tokenizer knows."""
    if code is None:
        shown = ", ".join(known[:6])
        raise SettingsError(f"task.{setting} is missing: {name} knows {len(known)} languages", hint=f"{shown}, ...")
    if code not in known:
        raise SettingsError(f"task.{setting}: {name} does not know {code!r}", hint=did_you_mean(code, known))
    return code
