"""What an instruction model is asked for the object that sounds, and what is made of its answer."""

from __future__ import annotations

import re
import unicodedata

from avloc.data.phrases import Variant
from data_prep.phrase_models import one_line

__all__ = ["PROMPT_VERSION", "STATUS", "clean", "request"]

PROMPT_VERSION = "1"  # of the requests below; another one gets answers of its own

REQUESTS: dict[str, str] = {
    "both": (
        "Two programs have described the same short video: one saw a picture of it, the other only heard its sound. "
        "Which single main object of the picture is the most likely source of the sound? Leave aside background noises "
        "that nothing in the picture's description accounts for. Give just the general kind of thing, in no more than "
        "three words, and write nothing else.\n\nPicture: {image}\nSound: {audio}"
    ),
    "audio": (
        "A program has heard the sound of a short video and described it. Which single main object is the most likely "
        "source of the sound? Leave aside background noises. Give just the general kind of thing, in no more than "
        "three words, and write nothing else.\n\nSound: {audio}"
    ),
    "image": (
        "A program has described a picture of a short video. Which single main object of the picture is the most "
        "likely to make a sound? Give just the general kind of thing, in no more than three words, and write nothing "
        "else.\n\nPicture: {image}"
    ),
}

STATUS = {
    "ok": "kept",
    "multiline": "kept: several lines, of which the first is taken",
    "long": "kept although it has more than three words",
    "empty": "no answer: left out of the caption loss",
    "refusal": "refused or knew of no object: left out of the caption loss",
    "language": "another language or script: left out of the caption loss",
    "echo": "nothing but words of the request: left out of the caption loss",
    "no_caption": "a caption is missing, so nothing was asked: left out of the caption loss",
    "absent": "not in the file of phrases: left out of the caption loss",
}

MOST_WORDS = 3

REFUSALS = re.compile(
    r"(i'?m sorry|i am sorry|sorry|i apologi[sz]e|as an ai|i'?m an ai|(i|we) (can ?not|can'?t|am unable|do not|don'?t)|"
    r"unable to|impossible to|not possible|((it|this|that) )?(can ?not|can'?t)|there (is|are) no|not enough|"
    r"insufficient|the (given |provided )?(picture|image|sound|audio|description|caption)s?( \w+)? (does|do) not)\b.*|"
    r"(the answer is )?(none|unknown|nothing|n/?a|not applicable|unclear|undetermined|unsure|uncertain|no idea|"
    r"no (main |single |visible |clear )?(object|answer|sound|source)s?|not (clear|sure|specified|mentioned|known))\b.*"
)

# Articles of other languages with the Latin script, where they cannot be English words before a noun.
FOREIGN = {"le", "la", "les", "une", "un", "el", "los", "las", "una", "uno", "der", "das", "ein", "eine", "il", "gli"}

LABEL = re.compile(r"^(answer|object|main object|sounding object|source|response|output)\s*[:=-]\s*")


def request(variant: Variant, image: str = "", audio: str = "") -> str:
    """What the instruction model is asked: what ACL-SSL's journal paper asks, in words of our own.

    Args:
        variant: which captions it is given.
        image: caption of the picture.
        audio: caption of the sound.
    """
    return REQUESTS[variant].format(image=one_line(image), audio=one_line(audio))


def clean(answer: str, asked: str = "") -> tuple[str, str]:
    """A phrase of an answer, and what was found about it.

    The phrase is the first line that holds anything, in lower case, without quotes, marks of lists and emphasis, a
    leading "answer:" and the full stop.

    Args:
        answer: as the model gave it.
        asked: what it was asked; words of that alone (captions aside) are no answer.

    Returns:
        phrase: "" unless the status is one of ``ok``, ``multiline``, ``long``.
        status: a key of `STATUS`. Other languages in the Latin script are told by their article alone.
    """
    lines = [line for line in map(str.strip, answer.splitlines()) if line.strip("`\"'*_#-.:; ")]
    if not lines:
        return "", "empty"
    phrase = one_line(unicodedata.normalize("NFKC", lines[0]).replace("’", "'")).lower()
    phrase = re.sub(r"^([-*•#>]+|\d+[.)])\s+", "", phrase)
    phrase = phrase.strip("`\"'*_“”«» ")
    phrase = re.sub(r"\s*[(\[].*", "", LABEL.sub("", phrase)).strip("`\"'*_“”«»[]().,;:!? ")
    words = phrase.split()
    if not any(c.isalpha() for c in phrase):
        return "", "empty"
    if REFUSALS.fullmatch(phrase):
        return "", "refusal"
    if any(c.isalpha() and not unicodedata.name(c, "").startswith("LATIN") for c in phrase):
        return "", "language"
    if len(words) > 1 and words[0] in FOREIGN:
        return "", "language"
    theirs = set(re.findall(r"\w+", asked.partition("\n\n")[0].lower()))
    if re.match(r"(picture|sound)\s*:", phrase) or theirs.issuperset(re.findall(r"\w+", phrase)):
        return "", "echo"
    if len(words) > MOST_WORDS:
        return phrase, "long"
    return phrase, "multiline" if len(lines) > 1 else "ok"
