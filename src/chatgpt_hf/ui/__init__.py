"""A chat page in the browser, on this machine and without the network."""

from .page import build_page, launch_page, serve_page

__all__ = ["build_page", "launch_page", "serve_page"]
