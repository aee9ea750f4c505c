"""In place of upstream's file of this name, which the source distribution leaves out: nothing is exported here."""


class ExportTesterMixin:
    """`ModelTesterMixin` is a subclass of it."""
