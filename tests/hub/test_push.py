"""Uploads and downloads through the real client and real sockets, and everything that can go wrong."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from chatgpt_hf import __version__

PRIVATE = {
    "optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "trainer_state.json", ".env", "notes.txt",
    "checkpoint-5/", ".cache/", "my-chats.json",
}  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def change_weights(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[0]
    save_file({name: weight + 1 for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})


def test_there_and_back(client: Any, hub: Any, folder: Path, tmp_path: Path) -> None:
    result = client("push", folder, "me/first", "--private")
    assert result.code == 0, result.err
    assert hub.titles("me/first") == [f"Upload first with chatgpt_hf {__version__}", "initial commit"]
    assert hub.repos["me/first"].private
    sent = hub.files("me/first")
    assert {"config.json", "tokenizer.json", "README.md", "evaluation/held-out/results.json"} <= sent.keys()
    assert not [name for name in sent if any(name.startswith(left) for left in PRIVATE)]
    line = next(line for line in result.out.splitlines() if line.startswith("Not uploaded: "))
    assert set(line.removeprefix("Not uploaded: ").split(", ")) == PRIVATE
    assert "names no license" in result.out
    # The uploaded files equal those in the folder, including the card, which names the repository.
    assert sent == {name: content for name, content in contents(folder).items() if name in sent}
    assert b'model="me/first"' in sent["README.md"]

    result = client("pull", "me/first", tmp_path / "back")
    assert result.code == 0, result.err
    assert contents(tmp_path / "back") == sent
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

    local = AutoModelForCausalLM.from_pretrained(folder)
    loss = client.run(
        "import torch\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained('me/first', trust_remote_code=False)\n"
        "ids = torch.tensor([AutoTokenizer.from_pretrained('me/first')('A cat sits in')['input_ids']])\n"
        "result = [type(model).__module__, ids.tolist(), model(ids, labels=ids).loss.item()]"
    )
    ids = torch.tensor(loss[1])
    assert loss[0] == "chatgpt_hf.model.modeling_chatgpt"
    assert loss[2] == pytest.approx(local(ids, labels=ids).loss.item(), abs=1e-6)


def test_an_upload_that_drops_is_gone_on_with(client: Any, hub: Any, folder: Path, tmp_path: Path) -> None:
    shards = len(list(folder.glob("*.safetensors")))
    hub.cut_uploads = lambda number: number >= 3
    message = client.refused("push", folder, "me/dropped")
    assert "The connection to the Hub was lost" in message
    assert "Run the same command again" in message
    assert hub.titles("me/dropped") == ["initial commit"]
    assert hub.files("me/dropped") == {}
    came = list(hub.uploads)
    assert 1 <= len(came) < shards

    hub.heal()
    assert client("push", folder, "me/dropped").code == 0
    assert not set(came) & set(hub.uploads), "complete files were sent again"
    assert len(came) + len(hub.uploads) == shards
    listed = client.run(
        "from huggingface_hub import HfApi\nresult = [c.title for c in HfApi().list_repo_commits('me/dropped')]"
    )
    # The Hub makes the first commit itself when a repository is created.
    assert listed == [f"Upload dropped with chatgpt_hf {__version__}", "initial commit"]
    assert client("pull", "me/dropped", tmp_path / "back").code == 0
    assert contents(tmp_path / "back") == {n: c for n, c in contents(folder).items() if n in hub.files("me/dropped")}


@pytest.mark.parametrize("moment", ["request", "answer"])
def test_a_commit_is_made_once_whatever_is_lost(moment: str, client: Any, hub: Any, folder: Path) -> None:
    hub.cut_commits = moment
    assert "connection to the Hub was lost" in client.refused("push", folder, "me/once")
    assert len(hub.titles("me/once")) == (2 if moment == "answer" else 1)
    hub.heal()
    assert client("push", folder, "me/once").code == 0
    assert hub.uploads == []
    assert len(hub.titles("me/once")) == 2
    assert client("push", folder, "me/once").code == 0
    assert len(hub.titles("me/once")) == 2, "nothing had changed"


def test_a_download_that_drops_is_gone_on_with(client: Any, hub: Any, folder: Path, tmp_path: Path) -> None:
    assert client("push", folder, "me/down").code == 0
    hub.cut_downloads = True
    assert "Run the same command again" in client.refused("pull", "me/down", tmp_path / "back")
    assert not (tmp_path / "back").exists()
    hub.heal()
    assert client("pull", "me/down", tmp_path / "back").code == 0
    assert contents(tmp_path / "back") == hub.files("me/down")


def test_a_dry_run_contacts_and_writes_nothing(client: Any, hub: Any, folder: Path) -> None:
    before = contents(folder)
    result = client("push", folder, "me/dry", "--dry-run", "--exclude", "evaluation/*", token=None)
    assert result.code == 0, result.err
    assert (hub.requests, hub.repos, contents(folder)) == ([], {}, before)
    size = (folder / "tokenizer.json").stat().st_size
    assert f"{size:,}  tokenizer.json" in result.out
    assert "evaluation/held-out" not in result.out.partition("Not uploaded")[0]
    assert "library_name: transformers" in result.out
    assert 'model="me/dry"' in result.out


def test_other_content_is_refused(client: Any, hub: Any, folder: Path) -> None:
    assert client("push", folder, "me/taken").code == 0
    # The same weights with another card are the same model.
    card = folder / "README.md"
    card.write_text(card.read_text() + "\nA word of my own.\n")
    assert client("push", folder, "me/taken", "--message", "Card").code == 0
    assert hub.titles("me/taken")[0] == "Card"
    held = hub.files("me/taken")

    change_weights(folder)
    (folder / "evaluation" / "held-out" / "results.json").unlink()
    message = client.refused("push", folder, "me/taken")
    assert "me/taken (revision main) already has other content: README.md, chat_template.jinja, config.json" in message
    assert "--overwrite" in message
    assert hub.files("me/taken") == held

    # A separate branch has only this model, and main is unchanged.
    assert client("push", folder, "me/taken", "--revision", "v2").code == 0
    assert hub.files("me/taken") == held
    assert "evaluation/held-out/results.json" not in hub.files("me/taken", "v2")
    assert client("push", folder, "me/taken", "--overwrite").code == 0
    assert hub.files("me/taken") == hub.files("me/taken", "v2")
    assert len(hub.titles("me/taken")) == 4


def test_weights_that_nothing_names_do_not_stay(client: Any, hub: Any, folder: Path, base_folder: Path) -> None:
    (folder / "recipe.yaml").write_text("max_steps: 4\n")
    assert client("push", folder, "me/shards").code == 0
    for file in folder.glob("model[-.]*"):
        file.unlink()
    shutil.copy(base_folder / "model.safetensors", folder)
    # Another state of the same run, recognized by its recipe.
    assert client("push", folder, "me/shards").code == 0
    assert [name for name in hub.files("me/shards") if name.startswith(("model-", "model."))] == ["model.safetensors"]


def test_checkpoints_become_branches(client: Any, hub: Any, pretrain_options: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = [*pretrain_options, "--save_strategy", "steps", "--save_steps", "2", "--output_dir", run]
    # The run uploads its finished folder itself, without the token in the uploaded recipe.
    result = client(
        "pretrain", *options, "--push_to_hub", "true", "--hub_model_id", "me/run", "--hub_strategy", "end",
        "--hub_token", "hf_writer", token=None,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert b"hf_writer" not in b"".join(hub.files("me/run").values())
    assert {"report/report.md", "report/loss.png", "recipe.yaml", "results.json"} <= hub.files("me/run").keys()

    result = client("push", run, "me/run", "--checkpoints")
    assert result.code == 0, result.err
    assert sorted(hub.repos["me/run"].branches) == ["main", "step-2", "step-4"]
    step = hub.files("me/run", "step-2")
    assert {"config.json", "model.safetensors", "tokenizer.json", "recipe.yaml", "README.md"} <= step.keys()
    assert not [name for name in step if name.endswith((".pt", ".pth", ".bin")) or "trainer_state" in name]
    assert step["model.safetensors"] == (run / "checkpoint-2" / "model.safetensors").read_bytes()
    card = ModelCard(step["README.md"].decode())
    assert "the checkpoint after 2 steps" in card.text
    assert card.data.eval_results is None, "the figures are those of the finished model"
    assert client("pull", "me/run", tmp_path / "back", "--revision", "step-2").code == 0
    AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert client("push", run, "me/run", "--checkpoints").code == 0
    assert len(hub.titles("me/run", "step-2")) == 3

    assert "give one of the two" in client.refused("push", run, "me/run", "--checkpoints", "--revision", "x")
    shutil.rmtree(run / "checkpoint-2")
    shutil.rmtree(run / "checkpoint-4")
    assert "has no complete checkpoint-N" in client.refused("push", run, "me/run", "--checkpoints")


@pytest.mark.works_with(
    "huggingface_hub",
    "`Trainer(push_to_hub=True)` and `from_pretrained` from there",
    ("huggingface_hub", "transformers"),
    where="CPU; the real client, a stand-in for the Hub",
)
def test_stock_trainer_pushes(client: Any, hub: Any, base_folder: Path, tmp_path: Path) -> None:
    code = f"""
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
model = AutoModelForCausalLM.from_pretrained({str(base_folder)!r})
rows = [{{"input_ids": list(range(10)), "labels": list(range(10))}}] * 8
arguments = TrainingArguments({str(tmp_path / "run")!r}, max_steps=2, save_steps=1, push_to_hub=True, report_to="none",
    hub_model_id="me/trainer", hub_token="hf_writer", disable_tqdm=True, use_cpu=True)
tokenizer = AutoTokenizer.from_pretrained({str(base_folder)!r})
trainer = Trainer(model, arguments, train_dataset=rows, processing_class=tokenizer)
trainer.train()
trainer.push_to_hub()
text = AutoTokenizer.from_pretrained("me/trainer").decode(
    AutoModelForCausalLM.from_pretrained("me/trainer").generate(torch.tensor([[1]]), max_new_tokens=2)[0])
result = type(model).__name__
"""
    assert client.run(code) == "ChatGPTForCausalLM"
    assert hub.titles("me/trainer")[0] == "End of training"
    assert hub.files("me/trainer")["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()
    # Our command accepts the same folder: equal weights mean the same model.
    assert client("push", tmp_path / "run", "me/trainer").code == 0


def test_a_server_without_xet_storage(client: Any, hub: Any, folder: Path) -> None:
    pytest.importorskip("hf_xet", reason="the client asks for Xet storage where hf_xet is installed")
    code = f"""
from huggingface_hub import constants
from chatgpt_hf.hub import push as module
constants.HF_HUB_DISABLE_XET = False
try:
    module.push({str(folder)!r}, "me/xet")
except module.HubError as error:
    result = str(error)
finally:
    constants.HF_HUB_DISABLE_XET = True
"""
    assert "set HF_HUB_DISABLE_XET=1" in client.run(code)
    assert hub.titles("me/xet") == ["initial commit"]


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (None, "Writing to the Hub needs a token: log in with `hf auth login`, or put one into"),
        ("hf_expired", "does not accept the token of HF_TOKEN (Invalid credentials in Authorization header)"),
        ("hf_reader", "use one with write permission for it"),
    ],
)
def test_tokens(token: str | None, words: str, client: Any, hub: Any, folder: Path) -> None:
    assert words in client.refused("push", folder, "me/closed", token=token)
    assert hub.repos == {}


def test_a_run_looks_at_its_token_first(client: Any, hub: Any, pretrain_options: list[str], tmp_path: Path) -> None:
    options = [*pretrain_options, "--output_dir", tmp_path / "run", "--push_to_hub", "true"]
    assert "does not accept the token" in client.refused("pretrain", *options, token="hf_expired")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("repo_id", ["a/b/c", "me/-x", "me/a--b", "me/my model", "me/x.git"])
def test_names_of_repositories(repo_id: str, client: Any, hub: Any, folder: Path, tmp_path: Path) -> None:
    assert f"{repo_id!r} is not a repository name" in client.refused("push", folder, repo_id)
    assert f"{repo_id!r} is not a repository name" in client.refused("pull", repo_id, tmp_path / "back")


def test_a_name_alone_is_the_owners(client: Any, hub: Any, folder: Path) -> None:
    assert client("push", folder, "alone").code == 0
    assert b'model="me/alone"' in hub.files("me/alone")["README.md"]


def test_visibility_does_not_change_by_itself(client: Any, hub: Any, folder: Path) -> None:
    assert client("push", folder, "me/open", "--public").code == 0
    (folder / "LICENSE").write_text("MIT")
    message = client.refused("push", folder, "me/open", "--private")
    assert "me/open is public, but --private is set. Nothing was sent" in message
    assert "LICENSE" not in hub.files("me/open")


def test_folders(client: Any, hub: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "one.txt").write_text("x")
    assert "There is no folder" in client.refused("push", tmp_path / "none", "me/x")
    assert "does not contain a model: config.json is missing" in client.refused("push", tmp_path / "texts", "me/x")
    shards = sorted(folder.glob("*.safetensors"))
    shards[0].rename(tmp_path / "away")
    assert f"names {shards[0].name}, which is missing" in client.refused("push", folder, "me/x")
    shards[0].write_bytes((tmp_path / "away").read_bytes()[:-100])
    assert "is not a complete safetensors file" in client.refused("push", folder, "me/x")
    for file in folder.glob("model[-.]*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert "pytorch_model.bin is a pickle" in client.refused("push", folder, "me/x")
    (folder / "config.json").write_text("{")
    assert "config.json cannot be read" in client.refused("push", folder, "me/x")
    assert hub.requests == []


def test_what_cannot_be_pulled(client: Any, hub: Any, folder: Path, tmp_path: Path) -> None:
    assert "There is no repository me/none" in client.refused("pull", "me/none", tmp_path / "back")
    client.run("from huggingface_hub import HfApi\nHfApi().create_repo('me/empty')")
    assert "me/empty does not contain a model: it has .gitattributes" in client.refused(
        "pull", "me/empty", tmp_path / "back"
    )
    assert client("push", folder, "me/there", "--private").code == 0
    assert "has no revision v9" in client.refused("pull", "me/there", tmp_path / "back", "--revision", "v9")
    assert "There is no repository me/there" in client.refused("pull", "me/there", tmp_path / "back", token=None)
    assert "is not empty: name a new folder" in client.refused("pull", "me/there", folder)
    assert not (tmp_path / "back").exists()


def test_a_card_with_invalid_metadata(client: Any, hub: Any, folder: Path) -> None:
    card = folder / "README.md"
    card.write_text("---\nlicense: [1]\nbase_model: runs/my/base\n---\n# Mine\n")
    message = client.refused("push", folder, "me/card")
    assert "license is 1, but must be an identifier such as apache-2.0" in message
    assert "base_model is 'runs/my/base', but must be the id of a model on the Hub" in message
    assert hub.requests == []
    # An error that only the Hub can find.
    card.write_text("---\nlicense: my-own\n---\n# Mine\n")
    assert '"license" must be one of the known' in client.refused("push", folder, "me/card")
    assert hub.files("me/card") == {}


def test_somebody_else_commits_meanwhile(client: Any, hub: Any, folder: Path) -> None:
    assert client("push", folder, "me/busy").code == 0
    code = f"""
from pathlib import Path
from huggingface_hub import HfApi
from chatgpt_hf.hub import push as module
real = HfApi.create_commit
def late(api, *arguments, **keywords):
    HfApi.create_commit = real
    api.upload_file(path_or_fileobj=b"new", path_in_repo="theirs.txt", repo_id="me/busy")
    return real(api, *arguments, **keywords)
HfApi.create_commit = late
Path({str(folder / "LICENSE")!r}).write_text("MIT")
try:
    module.push({str(folder)!r}, "me/busy")
except module.HubError as error:
    result = str(error)
finally:
    HfApi.create_commit = real
"""
    assert "Somebody else changed me/busy" in client.run(code)
    assert "LICENSE" not in hub.files("me/busy")
    assert "theirs.txt" in hub.files("me/busy")


def test_remote_code_travels(client: Any, hub: Any, folder: Path) -> None:
    for name in ("modeling_mine", "parts", "notes"):
        (folder / f"{name}.py").write_text("from .parts import x\n" if name == "modeling_mine" else "x = 1\n")
    assert client("push", folder, "me/code").code == 0
    ours = {"configuration_chatgpt.py", "local_context_chatgpt.py", "loss_chatgpt.py", "modeling_chatgpt.py"}
    assert {name for name in hub.files("me/code") if name.endswith(".py")} == ours
    assert b"trust_remote_code=True" in hub.files("me/code")["README.md"]
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_mine.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    assert client("push", folder, "me/mine").code == 0
    assert {name for name in hub.files("me/mine") if name.endswith(".py")} == {"modeling_mine.py", "parts.py"}
