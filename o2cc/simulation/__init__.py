# SPDX-License-Identifier: Apache-2.0
"""Runs lowered policies on the reference interpreter, in a kernel that exists only as numbers."""
