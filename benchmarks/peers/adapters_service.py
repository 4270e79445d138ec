"""AdapterHub's ``adapters`` with Parallel and AdapterDrop: a program for an environment of its own.

It reads JSON lines and writes one for each. The first tells what to build; then ``{"texts": [...], "answers": bool,
"shared": bool}`` is answered with ``{"seconds": ..., "answers": {task: [[...]]}}``. The seconds are taken here, from
texts to logits as arrays, so they hold no pipe and no JSON. The last line, ``{"check": [...]}``, compares the parallel
pass with each adapter run alone in fp32.

``Parallel`` copies rows where the first adapter sits. Dropping the adapters of the lower layers so lets one pass
of those layers serve all tasks; the layers above run once for each task.
"""

import json
import sys
import time
from typing import Any

import adapters.composition as compose
import numpy as np
import torch
from adapters import BertAdapterModel
from tokenizers import Tokenizer
from transformers import BertConfig

from benchmarks.peers.batching import measure_call_cost, sub_batches
from benchmarks.peers.tokens import encode, padded


class ParallelAdapters:
    """A backbone with an adapter and a head for each task, all run in one pass.

    Args:
        config: ``bert`` (fields of BertConfig), ``tasks`` (name, kind, n_outputs), ``n_dropped``, ``seed``,
            ``precision``, ``max_tokens``, ``tokenizer`` (a path).
    """

    def __init__(self, config: dict[str, Any]) -> None:
        torch.manual_seed(config["seed"])
        self.tasks = config["tasks"]
        self.dropped = list(range(config["n_dropped"]))
        self.kind = {"bf16": torch.bfloat16, "f32": torch.float32}[config["precision"]]
        self.model = BertAdapterModel(BertConfig(**config["bert"], attn_implementation="sdpa"))
        for task in self.tasks:
            self.model.add_adapter(task["name"], config="seq_bn")
            add = self.model.add_tagging_head if task["kind"] == "tagging" else self.model.add_classification_head
            # a regression is a classification with one logit, without its loss
            add(task["name"], num_labels=task["n_outputs"], layers=1)
        self._widen_adapters()
        self.model.eval().requires_grad_(requires_grad=False)
        self.tokenizer = Tokenizer.from_file(config["tokenizer"])
        self.tokenizer.enable_truncation(config["max_tokens"])
        self.tokenizer.no_padding()
        self._activate_all()
        self.model.to(self.kind)
        self.cost = measure_call_cost(self._call)

    def answer(self, texts: list[str]) -> dict[str, list[np.ndarray]]:
        """Logits of every task, in the order of the texts."""
        rows = encode(self.tokenizer, texts)
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        answers: dict[str, list[Any]] = {task["name"]: [None] * len(rows) for task in self.tasks}
        for cut in sub_batches([len(rows[place]) for place in order], self.cost.fixed_tokens):
            places = order[cut]
            outputs = self._call(*padded([rows[place] for place in places]))
            for task, logits in zip(self.tasks, outputs, strict=True):
                for place, values in zip(places, logits, strict=True):
                    answers[task["name"]][place] = values[: len(rows[place])] if task["kind"] == "tagging" else values
        return answers

    def check(self, texts: list[str]) -> dict[str, float]:
        """The largest difference of each task's logits to its adapter run alone in fp32, and what adapters change."""
        parallel = self.answer(texts)
        self.model.to(torch.float32)
        alone = {task["name"]: self._alone(task["name"], texts) for task in self.tasks}
        self.model.set_active_adapters(None)
        without = self._alone_logits(self.tasks[0]["name"], texts)
        first = self.tasks[0]["name"]
        found = {name: _largest(parallel[name], rows) for name, rows in alone.items()}
        found["adapters change the first task by"] = _largest(without, alone[first])
        self._activate_all()
        self.model.to(self.kind)
        return found

    def _alone(self, name: str, texts: list[str]) -> list[np.ndarray]:
        self.model.set_active_adapters(name, skip_layers=self.dropped)
        return self._alone_logits(name, texts)

    def _alone_logits(self, name: str, texts: list[str]) -> list[np.ndarray]:
        self.model.active_head = name
        rows = []
        with torch.inference_mode():
            for row in encode(self.tokenizer, texts):
                ids, mask = padded([row])
                out = self.model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
                rows.append(out.logits[0].numpy())
        return rows

    def _activate_all(self) -> None:
        names = [task["name"] for task in self.tasks]
        # of one task Parallel is that task, and its output is no list
        chosen = compose.Parallel(*names) if len(names) > 1 else names[0]
        self.model.set_active_adapters(chosen, skip_layers=self.dropped)
        self.model.active_head = names if len(names) > 1 else names[0]

    def _call(self, ids: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            out = self.model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
            parts = [out] if len(self.tasks) == 1 else list(out)
            return [part.logits.float().numpy() for part in parts]

    def _widen_adapters(self) -> None:
        """New adapters change next to nothing; drawn wider, a mix-up of tasks shows."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if ".adapters." in name and parameter.dim() == 2:
                    parameter.normal_(std=0.05)


def _largest(left: list[np.ndarray], right: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(left, right, strict=True))


def main() -> None:
    """Serve until the input ends."""
    # anything else that prints, prints beside the answers
    answers, sys.stdout = sys.stdout, sys.stderr
    config = json.loads(sys.stdin.readline())
    torch.set_num_threads(config["n_threads"])
    service = ParallelAdapters(config)
    print(json.dumps({"ready": True, "fixed_tokens": service.cost.fixed_tokens}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "check" in asked:
            print(json.dumps(service.check(asked["check"])), file=answers, flush=True)
            continue
        started, cpu = time.perf_counter(), time.process_time()
        found = service.answer(asked["texts"])
        said: dict[str, Any] = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
        if asked["answers"]:
            said["answers"] = {name: [row.tolist() for row in rows] for name, rows in found.items()}
        print(json.dumps(said), file=answers, flush=True)


if __name__ == "__main__":
    main()
