"""cxrstudy: a rerunnable study of how chest-x-ray foundation encoders improve with in-house data."""

import sys

# jsonschema tries to import this package, which compiles grammars that nothing here asks for over a second and more
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
