"""Regular expressions as people write them, read into `regular` expressions.

In one of the two dialects of `character_classes`. What is not regular, or not the same thing
everywhere, is refused by name.
"""

import re
from dataclasses import dataclass

from sfumato.errors import ConfigError
from sfumato.grammar.character_classes import (
    CONTROL,
    DIGIT,
    ECMA,
    LINE,
    LONG_NAMES,
    POSIX,
    RUST,
    SPACE,
    WORD,
    category,
    folded,
)
from sfumato.grammar.charset import ANY, LAST, CharSet, charset, inverse, letters_of
from sfumato.grammar.expressions import (
    AT_BEGIN,
    AT_END,
    NOTHING,
    Alt,
    Cat,
    Expression,
    One,
    Repeat,
    Text,
)

DEEPEST = 60  # groups within groups


def read_pattern(pattern: str, dialect: str = RUST) -> Expression:
    """What a regular expression says; raises `ConfigError` where it says what is not regular."""
    reader = _Reader(pattern, dialect)
    found = reader.alternatives(0)
    if reader.at < len(pattern):
        raise reader.refuse("unbalanced )")
    return found


def search(part: Expression) -> Expression:
    """A text in which an expression matches anywhere."""
    return Cat((Repeat(One(ANY)), part, Repeat(One(ANY))))


@dataclass
class _Reader:
    """A place in a pattern."""

    pattern: str
    dialect: str
    at: int = 0
    dot_all: bool = False
    any_case: bool = False

    def refuse(self, reason: str) -> ConfigError:
        shown = self.pattern if len(self.pattern) <= 60 else self.pattern[:57] + "..."
        return ConfigError(
            f"cannot use the regular expression {shown!r}, at character {self.at + 1}: {reason}"
        )

    def next(self, wanted: str) -> bool:
        """Whether this comes next; then it is passed."""
        if self.pattern.startswith(wanted, self.at):
            self.at += len(wanted)
            return True
        return False

    def taken(self, form: str) -> "re.Match[str] | None":
        found = re.compile(form).match(self.pattern, self.at)
        if found:
            self.at = found.end()
        return found

    def one(self) -> str:
        if self.at >= len(self.pattern):
            raise self.refuse("it ends too early")
        self.at += 1
        return self.pattern[self.at - 1]

    def alternatives(self, depth: int) -> Expression:
        if depth > DEEPEST:
            raise self.refuse(f"groups are nested more than {DEEPEST} deep")
        flags = self.dot_all, self.any_case
        parts = [self.sequence(depth)]
        while self.next("|"):
            parts.append(self.sequence(depth))
        self.dot_all, self.any_case = flags
        return parts[0] if len(parts) == 1 else Alt(tuple(parts))

    def sequence(self, depth: int) -> Expression:
        parts: list[Expression] = []
        run = ""
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            part = self.repeated(self.atom(depth))
            if isinstance(part, Text):
                run += part.text
                continue
            parts += ([Text(run)] if run else []) + [part]
            run = ""
        parts += [Text(run)] if run else []
        return parts[0] if len(parts) == 1 else Cat(tuple(parts))

    def repeated(self, part: Expression) -> Expression:
        limits = self.limits()
        if limits is None:
            return part
        low, high = limits
        if part in (AT_BEGIN, AT_END):
            raise self.refuse("an anchor cannot be repeated")
        self.next("?")  # lazy: the same texts
        if self.limits() is not None:
            raise self.refuse("a repetition is repeated; put it into a group")
        return Repeat(part, low, high)

    def limits(self) -> tuple[int, int | None] | None:
        """Of *, +, ? or {m,n}, if one of them comes next."""
        for sign, limits in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self.next(sign):
                return limits
        found = self.taken(r"\{(\d{0,9})(?:(,)(\d{0,9}))?\}")
        if found is None or not (found[1] or found[3]):
            if found is not None:
                raise self.refuse("{} says no number")
            return None
        low = int(found[1] or 0)
        high = low if found[2] is None else int(found[3]) if found[3] else None
        if high is not None and high < low:
            raise self.refuse(f"from {low} to {high} times")
        return low, high

    def atom(self, depth: int) -> Expression:
        sign = self.one()
        if sign == "(":
            return self.group(depth)
        if sign == "[":
            return self.chars(self.listed())
        if sign == ".":
            return One(ANY if self.dot_all else inverse(LINE[self.dialect]))
        if sign == "^":
            return AT_BEGIN
        if sign == "$":
            return AT_END
        if sign == "\\":
            return self.chars(self.escape(False))
        if sign in "*+?" or (sign == "{" and self.dialect == ECMA):
            raise self.refuse(f"nothing to repeat before {sign}")
        return self.chars(charset((ord(sign), ord(sign))), sign)

    def chars(self, found: "CharSet | Expression", sign: str | None = None) -> Expression:
        if not isinstance(found, tuple):
            return found
        if self.any_case:
            found = folded(found)
        if len(found) == 1 and found[0][0] == found[0][1]:
            return Text(chr(found[0][0]))
        if sign is not None and not found:
            raise self.refuse("half a character")
        return One(found)

    def group(self, depth: int) -> Expression:
        if self.next("?"):
            if self.taken(r"P?<[A-Za-z_]\w*>|:"):
                pass
            elif self.taken("<?[=!]"):
                raise self.refuse("look-around is not regular here")
            else:
                found = self.taken(r"([a-zA-Z]*)(?:-([a-zA-Z]+))?([:)])")
                if found is None:
                    raise self.refuse("an unknown kind of group")
                return self.flagged(found, depth)
        found = self.alternatives(depth + 1)
        if not self.next(")"):
            raise self.refuse("missing )")
        return found

    def flagged(self, found: "re.Match[str]", depth: int) -> Expression:
        on, off, closing = found[1] or "", found[2] or "", found[3]
        if set(on + off) - {"i", "s"} or (self.dialect == ECMA and closing == ")"):
            raise self.refuse(f"flags other than i and s, in {found[0]!r}")
        flags = self.dot_all, self.any_case
        self.dot_all = ("s" in on or self.dot_all) and "s" not in off
        self.any_case = ("i" in on or self.any_case) and "i" not in off
        if closing == ")":
            return NOTHING  # for the rest of the group, which puts them back
        inner = self.alternatives(depth + 1)
        if not self.next(")"):
            raise self.refuse("missing )")
        self.dot_all, self.any_case = flags
        return inner

    def listed(self) -> CharSet:
        """The characters of [...]."""
        negated = self.next("^")
        ranges: list[tuple[int, int]] = []
        first = True
        while True:
            posix = self.taken(r"\[:(\^?)([a-z]+):\]") if self.dialect == RUST else None
            if posix:
                if posix[2] not in POSIX:
                    raise self.refuse(f"an unknown class {posix[0]}")
                ranges += inverse(POSIX[posix[2]]) if posix[1] else POSIX[posix[2]]
                first = False
                continue
            if self.dialect == RUST and self.taken(r"&&|--|~~"):
                raise self.refuse("&&, -- and ~~ of sets; list the characters")
            sign = self.one()
            if sign == "]" and not (first and self.dialect == RUST):
                break
            if sign == "[" and self.dialect == RUST:
                raise self.refuse(r"a set in a set; write \[ for the character")
            first = False
            low = self.escape(True) if sign == "\\" else charset((ord(sign), ord(sign)))
            assert isinstance(low, tuple), "a set within a set"
            ending = self.pattern[self.at : self.at + 2]
            if len(ending) == 2 and ending[0] == "-" and ending[1] != "]":
                self.at += 1
                sign = self.one()
                high = self.escape(True) if sign == "\\" else charset((ord(sign), ord(sign)))
                assert isinstance(high, tuple), "a set within a set"
                if (
                    [len(low), len(high)] != [1, 1]
                    or low[0][0] > high[0][0]
                    or low[0][0] != low[0][1]
                ):
                    raise self.refuse("a range that is none")
                ranges.append((low[0][0], high[0][1]))
            else:
                ranges += low
        found = charset(*ranges)
        found = folded(found) if self.any_case else found
        return inverse(found) if negated else found

    def escape(self, listed: bool) -> "CharSet | Expression":
        """What stands behind a backslash; in a set only characters may."""
        sign = self.one()
        kinds = {"d": DIGIT, "w": WORD, "s": SPACE[self.dialect]}
        if sign.lower() in kinds:
            found = kinds[sign.lower()]
            return found if sign.islower() else inverse(found)
        if sign in CONTROL:
            return letters_of(CONTROL[sign])
        if sign in "pP":
            return self.property(sign == "P")
        if sign in "xuU":
            return self.numbered(sign)
        if sign == "0" and not self.pattern[self.at : self.at + 1].isdigit():
            return letters_of("\0")
        if sign == "a" and self.dialect == RUST:
            return letters_of("\a")
        if sign == "c" and self.dialect == ECMA and (found := self.taken("[A-Za-z]")):
            return letters_of(chr(ord(found[0]) % 32))
        if sign == "b" and listed:
            return letters_of("\b")
        if not listed and self.dialect == RUST and sign in "Az":
            return AT_BEGIN if sign == "A" else AT_END
        if sign in "bB":
            raise self.refuse("word boundaries")
        if sign.isdigit() or sign == "k":
            raise self.refuse("back references are not regular")
        if sign.isalnum():
            raise self.refuse(f"an unknown escape \\{sign}")
        return letters_of(sign)

    def numbered(self, sign: str) -> CharSet:
        """A character by its number."""
        digits = {"x": 2, "u": 4, "U": 8}[sign]
        found = self.taken(r"\{([0-9A-Fa-f]{1,8})\}") or self.taken(f"([0-9A-Fa-f]{{{digits}}})")
        if found is None:
            raise self.refuse(f"\\{sign} wants {digits} digits of a hexadecimal number")
        code = int(found[1], 16)
        if 0xD800 <= code < 0xDC00:
            low = self.taken(r"\\u([dD][c-fC-F][0-9A-Fa-f]{2})")
            code = (
                code if low is None else 0x10000 + (code - 0xD800) * 1024 + int(low[1], 16) - 0xDC00
            )
        if code > LAST or not charset((code, code)):
            raise self.refuse(f"{found[0]} is no character")
        return charset((code, code))

    def property(self, negated: bool) -> CharSet:
        found = self.taken(r"\{(?:(?:gc|General_Category)=)?(\w+)\}") or self.taken("([A-Z])")
        name = LONG_NAMES.get(found[1], found[1]) if found else ""
        known = re.fullmatch("L[ulmto]?|M[nce]?|N[dlo]?|P[cdseifo]?|S[mcko]?|Z[slp]?|C[cfo]?", name)
        if known is None:
            raise self.refuse("\\p of anything but a general category, such as L or Lu")
        return inverse(category(name)) if negated else category(name)
