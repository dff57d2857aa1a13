# SPDX-License-Identifier: Apache-2.0
"""Classes of the shipped tree: what a label and the allocating code make of an object."""

from __future__ import annotations

import pytest

from o2cc.profile.labels import PAYLOAD
from scripts.train_sctp import OTHER, class_of


@pytest.mark.parametrize(
    ("label", "of_module", "expected"),
    [
        ("sctp_chunk", True, "sctp_chunk"),
        ("sk_buff", False, "sk_buff"),
        ("inode", False, OTHER),
        ("site:security_file_alloc/32", False, OTHER),
        # data and no struct, whoever has it
        ("payload", False, PAYLOAD),
        ("char[]", False, PAYLOAD),
        ("site:p9pdu_readf/16", False, PAYLOAD),
        ("site:load_elf_phdrs/1024", False, PAYLOAD),
        # one type under two labels must not become two classes
        ("genradix_node", False, PAYLOAD),
        ("site:__genradix_ptr_alloc/512", False, PAYLOAD),
        # what SCTP allocates besides its structs
        ("sctp_cookie_param", True, PAYLOAD),
        ("site:sctp_make_auth/40", True, PAYLOAD),
        ("site:sctp_get_port_local/96", True, "sctp_bind_bucket"),
    ],
)
def test_class_of_a_label(label: str, of_module: bool, expected: str) -> None:
    assert class_of(label, of_module=of_module) == expected
