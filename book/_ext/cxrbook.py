"""Keeps pages whole without a network: drops what would ask for addresses elsewhere."""

OUTSIDE = ("thebe", "https://", "http://")


def drop_outside(app, pagename, templatename, context, doctree):
    """Leave out scripts and styles of Thebe (live kernels need a server) or from another host."""
    for key in ("script_files", "css_files"):
        files = context.get(key, [])
        context[key] = [f for f in files if not any(mark in str(getattr(f, "filename", f)) for mark in OUTSIDE)]


def setup(app):
    app.connect("html-page-context", drop_outside, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
