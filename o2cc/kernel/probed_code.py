# SPDX-License-Identifier: Apache-2.0
"""What an instruction must look like in memory where a probe goes, so that a loader knows the code for what was scanned.

A hash, since a description holds no code.  The bytes that the linker fills in count as zero; where it is not known which
those are, instructions that may have some are not compared.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from iced_x86 import Decoder

_LONGEST = 15


@dataclass(frozen=True, slots=True)
class Code:
    """Length and hash of an instruction.  ``blank``: (position, size) of what counts as zero; None: not known."""

    length: int
    digest: int
    blank: tuple[tuple[int, int], ...] | None

    def text(self) -> str:
        """The form in which an object keeps it."""
        blank = "?" if self.blank is None else ",".join(f"{at:x}+{size:x}" for at, size in self.blank)
        return f"{self.length:x}:{self.digest:x}:{blank}"

    def fits(self, memory: bytes) -> bool:
        """Whether the bytes in memory, the instruction's and some behind it, are this instruction."""
        body = bytearray(memory[: self.length])
        if len(body) < self.length:
            return False
        if self.blank is None:
            decoder = Decoder(64, bytes(memory[:_LONGEST]))
            instruction = decoder.decode()
            places = decoder.get_constant_offsets(instruction)
            if instruction.is_invalid or instruction.len != self.length:
                return False
            if max(places.displacement_size, places.immediate_size) >= 4:
                return True  # an address may be in it
        for at, size in self.blank or ():
            body[at : at + size] = bytes(size)
        return zlib.crc32(body) == self.digest


def parse(text: str) -> Code:
    """What `Code.text` made.  Raises ValueError."""
    length, digest, blank = text.split(":")
    spans = [span.split("+") for span in blank.split(",") if span and blank != "?"]
    return Code(
        int(length, 16),
        int(digest, 16),
        None if blank == "?" else tuple((int(at, 16), int(size, 16)) for at, size in spans),
    )
