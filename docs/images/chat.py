"""Takes docs/images/chat.png: `python docs/images/chat.py MODEL "A question" ["Another" ...]`. Needs playwright."""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from chatgpt_hf.checkpoints import load_model
from chatgpt_hf.tokenization_chatgpt import load_tokenizer
from chatgpt_hf.ui import build_page, launch_page

model, *questions = sys.argv[1:]
page = build_page(load_model(model), load_tokenizer(model))
address = launch_page(page, port=7861)
with sync_playwright() as playwright:
    browser = playwright.chromium.launch(
        executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=["--no-sandbox"]
    )
    tab = browser.new_page(viewport={"width": 1280, "height": 720})
    tab.goto(address)
    tab.wait_for_function("document.querySelector('#sidebar.open')")
    for question in questions:
        tab.fill("#message textarea", question)
        tab.press("#message textarea", "Enter")
        tab.wait_for_function("document.querySelector('#new').disabled")
        tab.wait_for_function("!document.querySelector('#new').disabled", timeout=120_000)
    tab.wait_for_selector(".token")
    # The token that the model was least sure of.
    unsure = (
        "Math.min(...[...document.querySelectorAll('.token')].map((token) => token.style.getPropertyValue('--p')))"
    )
    tab.locator(f".token[style*='{tab.evaluate(unsure):.4f}']").first.hover()
    tab.wait_for_timeout(500)
    tab.screenshot(path=Path(__file__).with_suffix(".png"))
    browser.close()
page.close(verbose=False)
