# SPDX-License-Identifier: Apache-2.0
"""The abstract syntax tree of a policy file: what was written, with its place, before any meaning.

Every node is a frozen dataclass whose first field is its span. Two nodes are equal only if their spans
are; `without_spans` gives trees that compare by content. Sequences are tuples. Names are not resolved,
quantities are not scaled, globs are not expanded: that is the work of `o2cc.policy`.
One file a subject; users import `nodes` and name what they mean.
"""

from o2cc.syntax.nodes.base import *
from o2cc.syntax.nodes.clauses import *
from o2cc.syntax.nodes.expressions import *
from o2cc.syntax.nodes.files import *
from o2cc.syntax.nodes.places import *
from o2cc.syntax.nodes.rules import *
from o2cc.syntax.nodes.steps import *
from o2cc.syntax.nodes.words import *
