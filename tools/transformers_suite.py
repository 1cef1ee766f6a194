"""Run transformers' own tests of models and of generation on a tiny model of each mechanism.

    python tools/transformers_suite.py CHECKOUT [part of a test's name …]

CHECKOUT is a folder with the `tests/` of transformers at the version in requirements.txt; pip does not install them,
and `parameterized`, which they need, is not among what is pinned. Nothing else of this project needs either. What the
tests leave out by themselves is counted by reason. What does not apply here is listed below, and why.
"""

from __future__ import annotations

import importlib
import os
import sys
import unittest
from collections import Counter
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from bsbr.hf import BSBRCache, BSBRConfig, BSBRForCausalLM
from bsbr.mechanisms import MECHANISMS
from bsbr.model import leaves

ITSELF = (
    "the backbone checkpoints its blocks itself, so none is a GradientCheckpointingLayer, which this test looks for"
)
DOES_NOT_APPLY = {
    "test_gradient_checkpointing_enable_disable": ITSELF,
    "test_training_gradient_checkpointing": ITSELF,
    "test_training_gradient_checkpointing_use_reentrant_false": ITSELF,
    "test_training_gradient_checkpointing_use_reentrant_true": ITSELF,
    "test_can_init_all_missing_weights": "it seeds each module's drawing, and the backbone draws all at once; "
    "tests/test_hf.py holds that it draws the same weights for both classes",
    "test_recurrent_layers_mask_padding_on_continued_forward": "it gives position_ids, which are refused; "
    "tests/test_hf.py asks the same of every mechanism without them",
}
SIZES: dict[str, Any] = dict(
    vocab_size=99, hidden_dim=32, num_layers=2, num_heads=2, ff_dim=37, chunk_size=4, window_size=8
)
SPECIAL: dict[str, Any] = dict(bos_token_id=0, eos_token_id=1, pad_token_id=2)


class Tester:
    """What the tests ask for a config and for inputs."""

    batch_size, seq_length, is_training = 3, 19, True
    vocab_size, hidden_size, num_hidden_layers, num_attention_heads = 99, 32, 2, 2

    def __init__(self, mechanism: str) -> None:
        self.mechanism = mechanism

    def get_config(self) -> BSBRConfig:
        """A new one each time: tests change it."""
        return BSBRConfig(mechanism=self.mechanism, **SIZES, **SPECIAL)

    def prepare_config_and_inputs_for_common(self) -> tuple[BSBRConfig, dict[str, torch.Tensor]]:
        """The config, and three rows of 19 random tokens."""
        ids = torch.randint(3, self.vocab_size, (self.batch_size, self.seq_length))
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def cases(checkout: str) -> list[type[unittest.TestCase]]:
    """A class of tests for each mechanism."""
    sys.path.insert(0, checkout)
    common: Any = importlib.import_module("tests.test_modeling_common")
    generation: Any = importlib.import_module("tests.generation.test_utils")
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[BSBRConfig.model_type] = BSBRForCausalLM.__name__  # so the tests know its labels

    class Suite(common.ModelTesterMixin, generation.GenerationTesterMixin):
        all_model_classes = (BSBRForCausalLM,)
        has_attentions = False
        mechanism: str

        def setUp(self) -> None:
            self.model_tester = Tester(self.mechanism)

        def test_left_padding_compatibility(self, *args: Any, **kwargs: Any) -> None:
            self.has_attentions = True  # the test takes a model without for one that cannot be padded
            super().test_left_padding_compatibility(*args, **kwargs)

        def _check_caches_are_equal(self, first: BSBRCache, second: BSBRCache) -> None:
            assert first.columns == second.columns
            for one, other in zip(leaves(first.state), leaves(second.state), strict=True):
                torch.testing.assert_close(one, other)

    return [type(f"Test_{name}", (Suite, unittest.TestCase), {"mechanism": name}) for name in MECHANISMS]


def main(checkout: str, *wanted: str) -> int:
    """Run them, print a line for each that failed and for each reason to leave some out; 1 if one failed."""
    print(f"transformers {transformers.__version__}")
    failed = False
    for case in cases(checkout):
        names = unittest.defaultTestLoader.getTestCaseNames(case)
        gone = sorted(set(DOES_NOT_APPLY) - set(names))
        failed = failed or bool(gone)
        print("".join(f"listed, but not there: {name}\n" for name in gone), end="")
        chosen = [name for name in names if name not in DOES_NOT_APPLY and any(part in name for part in wanted or [""])]
        suite = unittest.TestSuite(case(name) for name in chosen)
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            result = unittest.TextTestRunner(stream=nowhere).run(suite)
        wrong = [*result.failures, *result.errors]
        failed = failed or bool(wrong)
        print(
            f"{case.__name__}: {result.testsRun} run, {len(result.skipped)} left out by themselves, {len(wrong)} failed"
        )
        for test, trace in wrong:
            print(f"    {test.id().rpartition('.')[2]}: {trace.strip().splitlines()[-1]}")
    for reason, count in Counter(reason for _, reason in result.skipped).most_common():
        print(f"left out by themselves, {count}: {reason}")
    for name, reason in DOES_NOT_APPLY.items():
        print(f"does not apply: {name}, since {reason}")
    return int(failed)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main(*sys.argv[1:]))
