# SPDX-License-Identifier: Apache-2.0
"""IR -> LLVM -> the BPF object: `o2cc.bpf.emit` is the way in, `o2cc.bpf.info` reads an object back."""
