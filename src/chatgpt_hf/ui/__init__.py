"""A chat page in the browser that runs on this machine, without the network."""

from .page import build_page, launch_page, serve_page

__all__ = ["build_page", "launch_page", "serve_page"]
