"""Every kind of bad input: one clear message, exit status 2, nothing left behind."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from transformers import CTRLConfig, CTRLForSequenceClassification, GPT2LMHeadModel

from orchestrator.errors import ExperimentError
from orchestrator.loading import load_experiment
from orchestrator.run import main
from trainables.errors import InputError  # noqa: F401  # imported here so that the first case is not slow


@pytest.fixture
def workplace(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model_directories: dict[str, Path],
    data_files: dict[str, Path],
) -> Path:
    """A directory with a good experiment, its data and model, and broken variants of them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(model_directories["gpt2"])
    for name, file in data_files.items():
        (tmp_path / f"{name}.tsv").write_text(file.read_text())
    (tmp_path / "good.yaml").write_text(
        """
name: good
model: {path: ./model}
data: {path: null, train: train.tsv, validation: validation.tsv, test: test.tsv, columns: [sentence, label]}
methods: {full: {}, lora: {rank: [2, 4]}}
"""
    )
    (tmp_path / "one_class.tsv").write_text("good film\t1\nfine plot\t1\n")
    (tmp_path / "empty.tsv").write_text("")
    (tmp_path / "long.tsv").write_text(f"{'good ' * 80}film\t1\n{'bad ' * 20}film\t0\n")
    shutil.copytree(tmp_path / "model", tmp_path / "small")
    cut_vocabulary(tmp_path / "small", tokens=3)
    (tmp_path / "unknown_label.tsv").write_text("good film\t7\n")
    (tmp_path / "no_label.tsv").write_text("good film\t\nbad film\t0\n")
    (tmp_path / "no_text.tsv").write_text("good film\t1\n\t0\n")
    (tmp_path / "notes.txt").write_text("good film\t1\n")
    (tmp_path / "quoted.tsv").write_text('"good\nfilm"\t1\nbad film\t0\n')
    (tmp_path / "header.tsv").write_text(f"sentence\tlabel\n{(tmp_path / 'train.tsv').read_text()}")
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    (tmp_path / "latin.csv").write_bytes(b"sentence,label\ncaf\xe9,1\nbad,0\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "broken.jsonl").write_text('{"sentence": "good"\n')
    (tmp_path / "no_weights").mkdir()
    (tmp_path / "no_weights" / "config.json").write_text((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    torch.manual_seed(0)
    ctrl = CTRLConfig(vocab_size=20, n_positions=64, n_embd=8, dff=8, n_layer=1, n_head=1)
    CTRLForSequenceClassification(ctrl).save_pretrained(tmp_path / "ctrl")
    for file in model_directories["gpt2"].glob("tokenizer*"):
        (tmp_path / "ctrl" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "nothing").mkdir()
    (tmp_path / "list.yaml").write_text("- lora\n- full\n")
    (tmp_path / "syntax.yaml").write_text("name: [unclosed\n")
    (tmp_path / "twice.yaml").write_text("name: a\nname: b\n")
    (tmp_path / "runs" / "taken").mkdir(parents=True)
    return tmp_path


def cut_vocabulary(directory: Path, tokens: int) -> None:
    """Have a saved model know its first tokens only; its tokenizer stays."""
    model = GPT2LMHeadModel.from_pretrained(directory)
    model.resize_token_embeddings(tokens)
    model.save_pretrained(directory)


def sets(*overrides: str) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


CASES: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "missing file": (["absent.yaml"], ("absent.yaml: no such file",)),
    "not a mapping": (["list.yaml"], ("list.yaml", "expected keys such as", "list")),
    "YAML syntax": (["syntax.yaml"], ("syntax.yaml", "line", "not valid YAML")),
    "key twice": (["twice.yaml"], ("twice.yaml", "line 2", "'name' appears twice")),
    "directory": (["nothing"], ("nothing", "could not be read")),
    "unknown key": (sets("serach.trials=3"), ("good.yaml: serach: unknown key", "did you mean search?")),
    "unknown nested key": (sets("search.trails=3"), ("search.trails: unknown key", "did you mean trials?")),
    "wrong type": (sets("search.trials=many"), ("search.trials: expected a valid integer", "'many'")),
    "too few trials": (sets("search.trials=0"), ("search.trials", "greater than or equal to 1", "got 0")),
    "two kinds of budget": (
        sets("budget={examples: 10, train_seconds: 1}"),
        ("good.yaml: budget.train_seconds and examples are both set; expected one of them",),
    ),
    "budget of nothing": (
        sets("budget.train_seconds=0"),
        ("budget.train_seconds", "greater than 0", "got 0"),
    ),
    "negative confirm seeds": (sets("confirm.seeds=-1"), ("confirm.seeds", "greater than or equal to 0")),
    "unknown sampler": (sets("search.sampler=grid"), ("search.sampler", "'tpe'", "'grid'")),
    "unknown dtype": (sets("model.dtype=int4"), ("model.dtype", "'float32'", "'int4'")),
    "negative seed": (sets("seed=-1"), ("seed", "got -1")),
    "warm-up of all steps": (sets("training.warmup_fraction=1"), ("training.warmup_fraction", "less than 1")),
    "path as name": (["--name", "../../x"], ("name", "'../../x'")),
    "unknown method": (sets("methods.lroa={}"), ("methods.lroa.kind: unknown method 'lroa'", "lora")),
    "unknown kind": (sets("methods.mine={kind: magic}"), ("methods.mine.kind", "'magic'", "known:")),
    "unknown --methods": (["--methods", "lora,bitfit"], ("--methods", "'bitfit'", "full, lora")),
    "a path as model": (
        sets("model=./model"),
        ("good.yaml: model: expected settings such as {path: ...}, got './model'",),
    ),
    "methods as a list": (
        sets("methods=[lora, full]"),
        ("methods: expected an entry for each method, such as {full: {}, lora: ", "got ['lora', 'full']"),
    ),
    "a method as a number": (
        sets("methods.lora=8"),
        ("methods.lora: expected hyperparameters such as {learning_rate: 1e-4}", "got 8"),
    ),
    "no methods": (sets("methods={}"), ("methods", "at least 1")),
    "unknown hyperparameter": (sets("methods.lora.ranks=[4]"), ("methods.lora.ranks", "known: rank, alpha")),
    "evaluations of a method": (
        sets("methods.lora.evaluations_per_epoch=[1, 20]"),
        ("methods.lora.evaluations_per_epoch: is the same for all methods", "training.evaluations_per_epoch"),
    ),
    "name of two words": (["--name", "my run"], ("name: expected letters, digits", "got 'my run'")),
    "methods not named": (["--methods", ""], ("--methods: ", "has no method ''; it has")),
    "methods that differ by case": (
        sets("methods={lora: {}, LoRA: {kind: lora}}"),
        ("methods.LoRA: differs from lora by case only",),
    ),
    "a number no column holds": (
        sets("methods.lora.alpha=99999999999999999999"),
        ("methods.lora.alpha", "at most 9223372036854775807"),
    ),
    "rank of full": (sets("methods.full.rank=4"), ("methods.full.rank", "not a hyperparameter of full")),
    "rank 0": (
        sets("methods.lora.rank=[0, 4]"),
        ("methods.lora.rank", "greater than or equal to 1", "got 0"),
    ),
    "rank as word": (sets("methods.lora.rank=big"), ("methods.lora.rank", "valid integer", "'big'")),
    "negative rate": (
        sets("methods.full.learning_rate=-1e-3"),
        ("methods.full.learning_rate", "greater than 0"),
    ),
    "empty choice": (sets("methods.lora.rank=[]"), ("methods.lora.rank", "at least one choice")),
    "range upside down": (
        sets("methods.full.learning_rate={low: 1e-3, high: 1e-5}"),
        ("methods.full.learning_rate", "low is above high"),
    ),
    "log range from 0": (
        sets("methods.full.learning_rate={low: 0, high: 1, log: true}"),
        ("methods.full.learning_rate", "above 0"),
    ),
    "range of whole numbers that is none": (
        sets("methods.full.batch_size={low: 8, high: 1e2}"),
        ("methods.full.batch_size: expected a valid integer", "got 37.28"),
    ),
    "one GPU and a half": (
        sets("resources.gpus_per_trial=1.5"),
        ("resources.gpus_per_trial: expected a part of one GPU or a whole number, got 1.5",),
    ),
    "range without end": (sets("methods.lora.rank={low: 2}"), ("methods.lora.rank", "low and high")),
    "dropout of 1": (sets("methods.lora.dropout=1"), ("methods.lora.dropout", "less than 1")),
    "target module": (
        sets("methods.lora.target_modules=[q_proj]"),
        ("methods.lora.target_modules", "q_proj", "c_attn"),
    ),
    "activations that cannot be computed again": (
        sets("model.path=./ctrl", "methods.lora.gradient_checkpointing=[true, false]"),
        (
            "methods.lora.gradient_checkpointing: CTRLForSequenceClassification does not support",
            "expected false",
        ),
    ),
    "no value to set": (sets("search.trials"), ("--set search.trials", "KEY=VALUE")),
    "set below a value": (sets("name.x=1"), ("--set name.x=1", "name is a value")),
    "set bad YAML": (sets("methods.lora.rank=[1"), ("--set methods.lora.rank", "not valid YAML")),
    "missing data": (sets("data.train=absent.tsv"), ("data.train: no such file: absent.tsv",)),
    "data ending": (sets("data.train=notes.txt"), ("data.train", ".txt", "expected one of .csv")),
    "data encoding": (
        sets("data.train=latin.csv", "data.columns=null"),
        ("data.train: latin.csv is not in UTF-8",),
    ),
    "file encoding": (["latin.yaml"], ("latin.yaml: is not in UTF-8; convert it",)),
    "data not Parquet": (sets("data.train=broken.parquet"), ("data.train", "could not be read as parquet")),
    "data not JSON": (sets("data.train=broken.jsonl"), ("data.train", "could not be read as jsonl")),
    "empty split": (sets("data.validation=empty.tsv"), ("data.validation",)),
    "one class": (sets("data.train=one_class.tsv"), ("data.label", "one class only", "'1'")),
    "unknown label": (sets("data.validation=unknown_label.tsv"), ("data.validation", "'7'", "0, 1")),
    "no label": (sets("data.train=no_label.tsv"), ("data.label", "example 1", "has no label")),
    "no text": (sets("data.train=no_text.tsv"), ("data.text", "has no text", "example 2")),
    "quoted line break": (
        sets("data.train=quoted.tsv"),
        ("data.train: quoted.tsv could not be read as tsv: ", "In .tsv files quotes are part of the text"),
    ),
    "header as an example": (
        sets("data.train=header.tsv"),
        ("data.columns: header.tsv begins with these names", "expected none for files with a header"),
    ),
    "label column": (sets("data.label=target"), ("data.label", "'target'", "'sentence', 'label'")),
    "text column": (sets("data.text=review"), ("data.text", "'review'", "'sentence', 'label'")),
    "text is label": (sets("data.text=label"), ("data.label", "same column")),
    "pair is label": (sets("data.text_pair=label"), ("data.label", "same column as data.text_pair")),
    "texts that are too long": (
        sets("data.train=long.tsv", "data.max_length=100"),
        ("data.max_length: is 100, but the model has 64 positions",),
    ),
    "tokens of another model": (
        sets("data.train=long.tsv", "model.path=./small"),
        ("model.path: its tokenizer has a token", "but it knows 3; expected its own tokenizer"),
    ),
    "column count": (sets("data.columns=[sentence]"), ("data.columns", "names 1 columns", "has 2")),
    "sample too small": (
        sets("data.max_train_examples=1"),
        ("data.max_train_examples: is 1, too few", "all 2 labels of these 64", "expected at least 2"),
    ),
    "embedded split": (
        sets("data.path=embedded", "data.train=training"),
        ("data.train", "'training'", "train, validation, test"),
    ),
    "split beside a file": (
        sets("data.path=embedded", "data.validation=dev", "data.columns=[text, label]", "data.text=text"),
        ("data.validation: no such file: dev",),
    ),
    "missing model": (sets("model.path=./absent"), ("model.path", "no such directory: ./absent")),
    "not a model": (sets("model.path=./nothing"), ("model.path", "no config.json")),
    "no weights": (sets("model.path=./no_weights"), ("model.path", "no weights", "safetensors")),
    "pickled weights": (
        sets("model.path=./pickled"),
        ("model.path", "pickled weights only", "convert them"),
    ),
    "more GPUs": (
        sets("resources.gpus_per_trial=1000"),
        ("resources.gpus_per_trial", "1000", "this machine has"),
    ),
    "more CPUs": (sets("resources.cpus_per_trial=5000"), ("resources.cpus_per_trial", "5000")),
    "auto and GPUs": (
        sets("resources={auto: true, gpus_per_trial: 1}"),
        ("resources.gpus_per_trial is set, and auto would set it; expected one of them",),
    ),
    "resources in a word": (sets("resources=all"), ("resources.all: unknown; expected auto",)),
    "more workers": (
        sets("resources.workers_per_trial=5000"),
        ("resources.workers_per_trial: asks for 5000, but there is room for ",),
    ),
    "a pack of trials with several workers": (
        sets("resources={trials_per_pack: 2, workers_per_trial: 2}"),
        ("resources.trials_per_pack: 2 trials share a process", "expected one of them to be 1"),
    ),
    "a pack whose memory is to be measured": (
        sets("resources={trials_per_pack: auto, auto: true}"),
        ("resources.auto measures trials one at a time", "expected trials_per_pack of 1"),
    ),
    "workers with half a GPU": (
        sets("resources.workers_per_trial=2", "resources.gpus_per_trial=0.5"),
        ("resources.gpus_per_trial", "2 workers needs whole GPUs", "got 0.5"),
    ),
    "one worker in parts": (
        sets("resources.parallelism=fsdp"),
        ("resources.parallelism: fsdp needs several workers", "workers_per_trial of at least 2"),
    ),
    "4-bit weights in parts": (
        sets("resources={workers_per_trial: 2, parallelism: fsdp}", "methods.small={kind: qlora}"),
        ("good.yaml: resources.parallelism: fsdp cannot split the 4-bit weights of small", "expected ddp"),
    ),
    "no CPUs": (sets("resources.cpus_per_trial=0"), ("resources.cpus_per_trial", "greater than 0")),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_message_and_nothing_is_made(
    case: str, workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments, fragments = CASES[case]
    named = arguments and not arguments[0].startswith("--")
    before = sorted(workplace.rglob("*"))
    status = main(arguments if named else ["good.yaml", *arguments])
    captured = capfd.readouterr()
    assert status == 2, captured
    assert "Traceback" not in captured.err
    for fragment in fragments:
        assert fragment in captured.err
    assert sorted(workplace.rglob("*")) == before


def test_existing_run_directory_is_refused(workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["good.yaml", "--name", "taken"]) == 2
    said = capfd.readouterr().err
    assert "exists already" in said
    assert "--resume" in said
    assert list((workplace / "runs" / "taken").iterdir()) == []


def test_all_problems_are_shown_at_once(workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["good.yaml", *sets("seed=-1", "search.trials=0", "methods.lora.rank=[0]")]) == 2
    assert len(capfd.readouterr().err.strip().splitlines()) == 3
    wanted = sets("resources.cpus_per_trial=5000", "resources.gpus_per_trial=1000")
    assert main(["good.yaml", "--name", "taken", *wanted]) == 2
    problems = capfd.readouterr().err.splitlines()
    keys = ["name", "resources.cpus_per_trial", "resources.gpus_per_trial"]
    assert [line.split(": ")[:2] for line in problems] == [["good.yaml", key] for key in keys]


def test_a_run_that_is_refused_leaves_no_trace_in_loggers(
    workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow")
    before = sorted(workplace.rglob("*"))
    assert main(["good.yaml", "--name", "taken", *sets("logging.mlflow=sqlite:///tracked.db")]) == 2
    assert capfd.readouterr().err.startswith("good.yaml: name: ")
    assert sorted(workplace.rglob("*")) == before


def test_an_error_says_the_same_in_another_process() -> None:
    error = ExperimentError("one", "other", where="file.yaml")
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "file.yaml: one\nfile.yaml: other"


def test_dry_run_prints_the_plan_and_makes_nothing(
    workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(workplace.rglob("*"))
    assert main(["good.yaml", "--dry-run"]) == 0
    printed = capfd.readouterr().out
    assert "lora" in printed
    assert "budget" not in printed
    assert "64 examples, file train.tsv" in printed
    assert "trials in all: 16 in the search, and 10 to confirm" in printed
    assert "each trial: 1 CPU, 0 GPUs" in printed
    assert f"base model: {(workplace / 'model').resolve()}, float32" in printed
    for name, half in (("train", 32), ("validation", 12), ("test", 12)):
        assert f"labels of {name}: 0 50% ({half}), 1 50% ({half})" in printed
    # 1.96 standard errors of a coin thrown 24 times.
    assert "measured on 24 test examples is uncertain by up to 20.0 points" in printed
    assert sorted(workplace.rglob("*")) == before


def test_dry_run_says_what_a_budget_and_fresh_seeds_ask_for(
    workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = sets("budget.examples=5000", "confirm.seeds=3", "resources.trials_per_pack=auto")
    assert main(["good.yaml", "--dry-run", *wanted]) == 0
    printed = capfd.readouterr().out
    assert "budget of each method: 5,000 examples" in printed
    assert "then the best of each method is trained with 3 fresh seeds" in printed
    assert "trials in all: as many as each budget allows, and 6 to confirm" in printed
    one = sets("budget={train_seconds: 1}", "confirm.seeds=1")
    assert main(["good.yaml", "--dry-run", *one]) == 0
    printed = capfd.readouterr().out
    assert "budget of each method: 1 second of training" in printed
    assert "trained with 1 fresh seed\n" in printed


def test_dry_run_names_the_built_in_model_and_leaves_out_what_is_not_confirmed(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trainables.embedded.embedded_model_directory", lambda report: workplace / "model")
    wanted = sets("model.path=embedded", "confirm.seeds=0", "data.validation=null")
    assert main(["good.yaml", "--dry-run", *wanted]) == 0
    printed = capfd.readouterr().out
    assert "model.path is 'embedded', the built-in model" in printed
    assert "base model: the built-in one, a tiny GPT-2, float32" in printed
    assert "trials in all: 16 in the search\n" in printed
    assert "uncertain" not in printed


def test_a_default_split_asked_for_beside_a_file_is_told_of(
    workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["good.yaml", "--dry-run", *sets("data.validation=validation")]) == 0
    assert (
        "data.validation: no such file: validation; it is cut from train.tsv instead"
        in capfd.readouterr().out
    )


def test_dry_run_says_what_each_of_a_trials_workers_gets(
    workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    workers = "resources={workers_per_trial: 4, cpus_per_trial: 0.25, parallelism: fsdp}"
    assert main(["good.yaml", "--dry-run", *sets(workers)]) == 0
    assert "each trial: 4 x (0.25 CPUs, 0 GPUs), fsdp" in capfd.readouterr().out


def test_what_a_mapping_merges_in_may_be_overridden(tmp_path: Path) -> None:
    file = tmp_path / "merged.yaml"
    file.write_text(
        "methods:\n  lora: &small {rank: 8, alpha: 16}\n  big: {<<: *small, kind: lora, rank: 64}\n"
    )
    experiment = load_experiment(file)
    assert experiment.first_trial("lora")["rank"] == 8
    assert {name: experiment.first_trial("big")[name] for name in ("rank", "alpha")} == {
        "rank": 64,
        "alpha": 16,
    }
    file.write_text("methods:\n  lora: &small {rank: 8}\n  big: {<<: *small, rank: 64, rank: 32}\n")
    with pytest.raises(ExperimentError, match="'rank' appears twice"):
        load_experiment(file)
