# SPDX-License-Identifier: Apache-2.0
"""Recording objects of a running kernel, and saying what each one is."""
