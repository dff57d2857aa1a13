# SPDX-License-Identifier: Apache-2.0
"""What docs/writing-a-policy.md and docs/language.md say of arguments, of `lends`, and of the states in tests."""

from __future__ import annotations

from tests.unit.lower.confined import failures

RULES = """
    write  struct sock { sk_err }
    entry  sctp_close(sk, timeout)
    entry  sctp_wfree(skb) { lends skb until return }
    entry  sctp_sock_rfree(skb) { lends skb as packet until return }
    entry  sctp_getsockopt(sk, level, name, place, length) { lends length[4] until return }
"""


def test_a_typed_argument_counts_without_a_clause_and_after_the_call() -> None:
    assert (
        failures(
            """
test "typed" {
    given s: struct sock foreign
    store sctp_close to s.sk_err
    expect deny
    enter sctp_close(s, 0)
    store sctp_close to s.sk_err
    expect allow
    store sctp_close to s.sk_socket
    expect deny
    leave
    store sctp_close to s.sk_err
    expect allow
    store sctp_close to s.sk_socket
    expect deny
}
""",
            RULES,
        )
        == []
    )


def test_lends_without_a_capability_is_for_all_of_the_object_until_the_return() -> None:
    assert (
        failures(
            """
test "whole object, and what the type's only capability covers" {
    given head: buffer 512 B foreign
    given s: struct sk_buff foreign { head = head, end = 100 }
    enter sctp_wfree(s)
    store sctp_wfree to s.destructor
    expect allow
    leave
    store sctp_wfree to s.destructor
    expect deny
}
test "with a capability, also behind its pointers" {
    given head: buffer 512 B foreign
    given s: struct sk_buff foreign { head = head, end = 100 }
    enter sctp_sock_rfree(s)
    store sctp_wfree to head size 8
    expect allow
    leave
    store sctp_wfree to head size 8
    expect deny
}
""",
            RULES,
        )
        == []
    )


def test_a_length_is_asked_for_inside_an_object_and_not_at_its_beginning() -> None:
    assert (
        failures(
            """
test "inside" {
    given b: buffer 64 B foreign
    enter sctp_getsockopt(0, 0, 0, 0, b + 8)
    store sctp_getsockopt to b + 8 size 4
    expect allow
    store sctp_getsockopt to b + 12 size 4
    expect deny
    store sctp_getsockopt to b size 8
    expect deny
}
test "at the beginning" {
    given b: buffer 64 B foreign
    enter sctp_getsockopt(0, 0, 0, 0, b)
    store sctp_getsockopt to b + 56 size 8
    expect allow
    leave
    store sctp_getsockopt to b size 4
    expect deny
}
""",
            RULES,
        )
        == []
    )


def test_the_states_of_objects() -> None:
    assert (
        failures(
            """
test "states" {
    given o: struct sock owned
    given h: struct sock held
    given s: struct sock shared
    given f: struct sock foreign
    given u: struct sock untracked
    given d: struct sock freed
    given m: buffer 64 B user
    store sctp_close to o.sk_socket
    expect allow
    store sctp_close to h.sk_socket
    expect allow
    store sctp_close to s.sk_err
    expect allow
    store sctp_close to s.sk_socket
    expect deny
    store sctp_close to f.sk_err
    expect deny
    store sctp_close to u.sk_err
    expect deny
    store sctp_close to d.sk_err
    expect deny
    store sctp_close to m size 8
    expect deny
    phase transition
    store sctp_close to f.sk_err
    expect audition
    store sctp_close to u.sk_err
    expect audition
    store sctp_close to s.sk_socket
    expect deny
}
""",
            RULES,
        )
        == []
    )


def test_an_empty_policy_allows_own_data_and_nothing_that_needs_a_rule() -> None:
    assert (
        failures(
            """
test "empty" {
    given s: struct sock foreign
    store sctp_close to sctp_memory_pressure size 8
    expect allow
    enter sctp_close(s, 0)
    store sctp_close to s.sk_err
    expect deny
    call kfree(0)
    expect deny
    icall sctp_do_sm to sctp_close
    expect deny
}
""",
            calls="",
            targets="",
            heap="",
        )
        == []
    )
