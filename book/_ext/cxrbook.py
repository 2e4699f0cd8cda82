"""Keeps pages whole without a network: drops what would ask for addresses elsewhere."""

OUTSIDE = ("thebe", "https://", "http://")


def drop_outside(app, pagename, templatename, context, doctree):
    """Leave out scripts and styles of Thebe (live kernels need a server) or from another host."""

    def ours(file):
        said = f"{getattr(file, 'filename', file)} {getattr(file, 'attributes', {}).get('body', '')}"
        return not any(mark in said for mark in OUTSIDE)

    for key in ("script_files", "css_files"):
        context[key] = [file for file in context.get(key, []) if ours(file)]


def setup(app):
    """Register with Sphinx; late, so that what themes and extensions add is seen."""
    app.connect("html-page-context", drop_outside, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
