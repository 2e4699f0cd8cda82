"""cxrstudy: a rerunnable study of how chest-x-ray foundation encoders improve with in-house data."""

import sys

sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]  # jsonschema tries to import it, for a second
