"""The comparison written plainly with the same libraries and nothing else: the peer that we race.

One Ray Tune experiment per method; OptunaSearch and ASHA; an actor per trial; inside it the HF Trainer, PEFT
and ``DataCollatorWithPadding``. Search spaces, budgets, seeds, slots, evaluations and checkpoints are those
of the experiment file, so that both programs train trials of the same hyperparameters::

    python -m benchmarks.plain_tune experiment.yaml --output plain.json

The file names a local GPT-2 and local TSV files; ``benchmarks/race.py`` makes it and runs both.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import optuna
import ray
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search.optuna import OptunaSearch

from orchestrator.experiment import Assignment, Experiment, derive_seed
from orchestrator.loading import load_experiment

TARGETS: Final = ["c_attn", "c_proj", "c_fc"]
"""GPT-2's linear layers."""

EVALUATION_BATCH_SIZE: Final = 64


def read(file: str, columns: list[str], count: int | None = None) -> dict[str, list[Any]]:
    """Read a TSV file's texts and labels; the first ``count`` of them."""
    with open(file, newline="") as content:
        rows = list(csv.reader(content, delimiter="\t", quoting=csv.QUOTE_NONE))[:count]
    text, label = columns.index("sentence"), columns.index("label")
    return {"text": [row[text] for row in rows], "label": [int(row[label]) for row in rows]}


def train(config: dict[str, Any], task: dict[str, Any]) -> None:
    """Train one trial and report every evaluation: a Ray Tune function trainable.

    It gets plain values, so that its process imports nothing of ours, which would make it start faster.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig, TaskType, get_peft_model, prepare_model_for_kbit_training
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        BitsAndBytesConfig,
        DataCollatorWithPadding,
        EvalPrediction,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    torch.set_num_threads(1)
    kind, seed, path, data = task["kind"], task["seed"], task["path"], task["data"]
    settings = {**task["settings"], **config}
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    def tokenized(file: str, count: int | None) -> Dataset:
        def tokenize(rows: dict[str, list[Any]]) -> Any:
            return tokenizer(rows["text"], truncation=True, max_length=data["max_length"])

        return Dataset.from_dict(read(file, data["columns"], count)).map(
            tokenize, batched=True, remove_columns=["text"]
        )

    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    model = AutoModelForSequenceClassification.from_pretrained(
        path,
        num_labels=2,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
        **({"quantization_config": quantization} if kind == "qlora" else {}),
    )
    if kind == "head":
        model.base_model.requires_grad_(False)
    elif kind != "full":
        if kind == "qlora":
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        model = get_peft_model(
            model,
            LoraConfig(
                task_type=TaskType.SEQ_CLS,
                r=settings["rank"],
                lora_alpha=settings["alpha"],
                target_modules=TARGETS,
                modules_to_save=["score"],
                use_dora=kind == "dora",
                fan_in_fan_out=kind != "qlora",
            ),
        )
    training = tokenized(data["train"], data["max_train_examples"])
    steps = settings["epochs"] * -(-len(training) // settings["batch_size"])
    every = -(-steps // (settings["epochs"] * settings["evaluations_per_epoch"]))

    class Report(TrainerCallback):
        evaluations, best = 0, 0.0

        def on_evaluate(
            self, args: Any, state: Any, control: Any, metrics: Any = None, **others: Any
        ) -> None:
            self.evaluations, self.best = self.evaluations + 1, max(self.best, metrics["eval_accuracy"])
            tune.report(
                {
                    "evaluation": self.evaluations,
                    "objective": self.best,
                    "accuracy": metrics["eval_accuracy"],
                    "loss": metrics["eval_loss"],
                }
            )

    def accuracy(prediction: EvalPrediction) -> dict[str, float]:
        logits = np.asarray(prediction.predictions)
        return {"accuracy": float((logits.argmax(axis=1) == prediction.label_ids).mean())}

    Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(Path(tune.get_context().get_trial_dir()) / "checkpoints"),
            num_train_epochs=settings["epochs"],
            per_device_train_batch_size=settings["batch_size"],
            per_device_eval_batch_size=EVALUATION_BATCH_SIZE,
            learning_rate=settings["learning_rate"],
            warmup_steps=settings["warmup_fraction"],
            weight_decay=settings["weight_decay"],
            max_grad_norm=settings["max_gradient_norm"],
            eval_strategy="steps",
            eval_steps=every,
            save_strategy="best",
            metric_for_best_model="accuracy",
            save_total_limit=1,
            seed=seed,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=training,
        eval_dataset=tokenized(data["validation"], data["max_validation_examples"]),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
        callbacks=[Report()],
    ).train()


def plain_task(experiment: Experiment, method: str) -> dict[str, Any]:
    """Return what all trials of a method have in common, as plain values."""
    spec = experiment.trial_spec(Assignment(method, 0, experiment.first_trial(method)))
    return {
        "kind": spec.kind,
        "seed": spec.seed,
        "settings": {**spec.settings.model_dump(), **spec.training.model_dump()},
        "path": experiment.model.path,
        "data": experiment.data.model_dump(),
    }


def search(experiment: Experiment, method: str, directory: Path) -> list[dict[str, Any]]:
    """Run one method's search and return its trials."""
    wanted = experiment.search
    seed = derive_seed(experiment.seed, "study", method) % 2**32
    sampler: optuna.samplers.BaseSampler = (
        optuna.samplers.RandomSampler(seed=seed)
        if wanted.sampler == "random"
        else optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
    )
    searcher = OptunaSearch(
        space=dict(experiment.space(method)),
        metric="objective",
        mode="max",
        sampler=sampler,
        points_to_evaluate=[experiment.first_trial(method)],
    )
    scheduler = AsyncHyperBandScheduler(
        time_attr="evaluation",
        metric="objective",
        mode="max",
        max_t=experiment.most_evaluations(method),
        grace_period=wanted.grace_evaluations,
        reduction_factor=wanted.reduction_factor,
        stop_last_trials=False,
    )
    trainable = tune.with_parameters(train, task=plain_task(experiment, method))
    results = tune.Tuner(
        tune.with_resources(trainable, {"cpu": experiment.resources.cpus_per_trial}),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler if wanted.early_stopping == "asha" else None,
            num_samples=wanted.trials,
            max_concurrent_trials=experiment.resources.max_concurrent,
        ),
        run_config=tune.RunConfig(name=method, storage_path=str(directory), verbose=0),
    ).fit()
    return [
        {"method": method, "error": str(one.error) if one.error else None, "config": one.config}
        | {name: (one.metrics or {}).get(name) for name in ("evaluation", "objective")}
        for one in results
    ]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    options = parser.parse_args()
    started = time.monotonic()
    experiment = load_experiment(options.experiment)
    ray.init(log_to_driver=False)
    trials = [
        trial
        for method in experiment.methods
        for trial in search(experiment, method, options.output.absolute().with_suffix(""))
    ]
    ray.shutdown()
    seconds = time.monotonic() - started
    options.output.write_text(json.dumps({"seconds": seconds, "trials": trials}, indent=2, default=str))


if __name__ == "__main__":
    main()
