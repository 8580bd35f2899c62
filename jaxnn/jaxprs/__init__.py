"""Programs as JAX lays them out, jaxprs, and the interpreter that evaluates them equation by equation.

No other package knows how a jaxpr stores a call, a custom rule, a scan, a while loop or a branch. JAX has changed this
between releases (the counts of a scan became trees, closed and open jaxprs one type), so the code tests for the fields
that exist, never for a version.
"""

from jaxnn.jaxprs.comparison import alike, first_difference
from jaxnn.jaxprs.control import Cond, Scan, While
from jaxnn.jaxprs.interpreter import Interpreter
from jaxnn.jaxprs.programs import (
    CALLS,
    CONTROL,
    RULED,
    Program,
    Values,
    bind,
    called,
    captured,
    constants_first,
    dependences,
    equations,
    function_of,
    in_form_of,
    is_complex,
    is_float,
    is_program,
    programs_in,
    size,
    spec_of,
    title_of,
    with_constants,
)
from jaxnn.jaxprs.sources import NOWHERE, Source, argument_names, line_of, name_of, source_of

__all__ = [
    "CALLS", "CONTROL", "NOWHERE", "RULED", "Cond", "Interpreter", "Program", "Scan", "Source", "Values",
    "While", "alike", "argument_names", "bind", "called", "captured", "constants_first", "dependences",
    "equations", "first_difference", "function_of", "in_form_of", "is_complex", "is_float", "is_program", "line_of",
    "name_of", "programs_in", "size", "source_of", "spec_of", "title_of", "with_constants",
]  # fmt: skip
