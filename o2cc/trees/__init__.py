# SPDX-License-Identifier: Apache-2.0
"""Decision trees over the words of a kernel object: exact integer form, training, and compilation to BPF."""
