"""The suite can fail: each check has a model that breaks just what it checks, and says so in one line."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch

from reca.conformance import planning
from reca.conformance.subject import Subject
from reca.conformance.suite import CHECKS, run_check
from reca.models import registry
from reca.models.common.digest import digest
from reca.models.contract import DecayGroups, Loss
from tests.conformance import outside


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The module `my_model.model`, installed for this file."""
    with pytest.MonkeyPatch.context() as patch:
        record = outside.write_record(tmp_path_factory.mktemp("site"))
        outside.install(patch, record, outside.EXAMPLE)
        yield importlib.import_module("my_model.model")
    outside.forget()


@pytest.fixture(scope="module")
def subject(example):
    return Subject(example.tiny())


def broken(example, **methods):
    """The example with other methods; each is a function of the base class."""
    model = example.tiny()
    own = {name: make(example.MyModel) for name, make in methods.items()}
    model.__class__ = type("Broken", (example.MyModel,), own)
    return model


def counter(attribute):
    """A number that grows with every call, in a model that keeps state."""

    def count(self):
        value = getattr(self, attribute, 0) + 1
        self.__dict__[attribute] = value
        return value

    return count


_calls = counter("calls")


def _noisy_encode(base):
    def encode(self, images, use):
        found = base.encode(self, images, use)
        return found | {"understanding": found["understanding"] + torch.rand(1)}

    return encode


def _batch_norm_encode(base):
    def encode(self, images, use):
        found = base.encode(self, images, use)
        return found | {"understanding": found["understanding"] - found["understanding"].mean(0)}

    return encode


def _loss(change):
    """`generation_loss` with a change of its result."""

    def make(base):
        def generation_loss(self, target, condition, noise):
            return change(
                self, base.generation_loss(self, target, condition, noise), target, condition
            )

        return generation_loss

    return make


def _in_place(self, loss, target, condition):
    target["understanding"].mul_(2.0)
    return loss


def _stateful(self, loss, target, condition):
    return Loss(loss.total * (1 + 0.1 * _calls(self)), loss.count)


def _dropout(self, loss, target, condition):
    return Loss(loss.total * (1 + torch.rand(())), loss.count)


def _into_frozen(self, loss, target, condition):
    self.frozen.codebook.requires_grad_(True)
    return Loss(loss.total + 0 * self.frozen.codebook.sum(), loss.count)


def _moving_codebook(self, loss, target, condition):
    self.frozen.codebook.data.mul_(0.999)
    return loss


def _blind(base):
    return lambda self, texts, features=None: replace(
        base.condition(self, texts, features),
        seen=None if features is None else torch.zeros_like(features["understanding"]),
    )


def _forgetful_save(base):
    def save(self, directory):
        base.save(self, directory)
        with torch.no_grad():
            self.network.head.bias.add_(1.0)

    return save


def _shared_noise(base):
    def generate(self, condition, unconditional, sampling, generators):
        return base.generate(
            self, condition, unconditional, sampling, [generators[0]] * len(generators)
        )

    return generate


def _global_noise(base):
    def generate(self, condition, unconditional, sampling, generators):
        own = [torch.Generator().manual_seed(int(torch.randint(99, ()))) for _ in generators]
        return base.generate(self, condition, unconditional, sampling, own)

    return generate


def _shifted_guidance(base):
    def generate(self, condition, unconditional, sampling, generators):
        if sampling.guidance not in (0.0, 1.0):
            sampling = replace(sampling, guidance=sampling.guidance + 50)
        return base.generate(self, condition, unconditional, sampling, generators)

    return generate


def _unguided(base):
    def generate(self, condition, unconditional, sampling, generators):
        return base.generate(
            self, condition, unconditional, replace(sampling, guidance=0.0), generators
        )

    return generate


def _longest_first(base):
    def answer(self, questions, features, max_new_tokens=32):
        found = base.answer(self, questions, features, max_new_tokens)
        return [f"{len(questions)} {text}" if max_new_tokens else "" for text in found]

    return answer


def _on_the_cpu(base):
    return lambda self, features: None if features is None else features["understanding"]


def _names(change):
    return lambda base: lambda self: change(base.trainable_parameters(self))


def _padding_is_seen(base):
    def _states(self, rows, codes=None):
        return base._states(self, replace(rows, real=torch.ones_like(rows.real)), codes)

    return _states


def _mean_of_answers(base):
    def answer_loss(self, conversation, features):
        found = base.answer_loss(self, conversation, features)
        return Loss(found.total / found.count, found.count)

    return answer_loss


def _labels_everywhere(base):
    def conversation(self, turns, with_image=True):
        found = base.conversation(self, turns, with_image)
        labels = found.ids.roll(-1, 1).masked_fill(~found.real.roll(-1, 1), -100)
        labels[:, -1] = -100
        return replace(found, labels=labels, count=int((labels != -100).sum()))

    return conversation


def _mean(self, loss, target, condition):
    return Loss(loss.total / loss.count, loss.count)


# Check -> the broken methods and what the check says of each.
BREAKS = {
    "encode_is_deterministic": [
        ({"encode": _noisy_encode}, "uses the global generator of torch"),
    ],
    "encode_ignores_the_batch": [
        ({"encode": _batch_norm_encode}, "differs from the image's row alone"),
    ],
    "fingerprint_covers_encode": [
        ({"encoder_fingerprint": lambda base: lambda self, use: "same"}, "a stale cache would be"),
        (
            {"encoder_fingerprint": lambda base: lambda self, use: str(_calls(self))},
            "differs between two calls",
        ),
        (
            {
                "encoder_fingerprint": lambda base: (
                    lambda self, use: digest(dict(self.frozen.named_parameters()), {})
                )
            },
            "another network.resolution (32 for 16) changes the rows of encode(images, 'draw')",
        ),
    ],
    "counts_before_losses": [
        (
            {"generation_loss": _loss(lambda s, loss, t, c: Loss(loss.total, loss.count - 1))},
            "reconstruction_loss counts 47 tokens, but loss_count announced 48",
        ),
        (
            {"generation_loss": _loss(lambda s, loss, t, c: Loss(loss.total.double(), 48))},
            "must be a float32 scalar",
        ),
    ],
    "questions_have_no_labels": [
        ({"conversation": _labels_everywhere}, "where its question is twice as long"),
    ],
    "losses_are_sums": [
        ({"generation_loss": _loss(_mean)}, "not their mean"),
        ({"answer_loss": _mean_of_answers}, "but its rows alone add up to"),
    ],
    "losses_ignore_the_batch": [
        ({"_states": _padding_is_seen}, "rows must not attend to each other or to padding"),
    ],
    "losses_are_pure": [
        ({"generation_loss": _loss(_in_place)}, "modifies its inputs"),
        ({"generation_loss": _loss(_stateful)}, "for the same inputs"),
        ({"generation_loss": _loss(_dropout)}, "uses the global generator of torch"),
        (
            {
                "sample_noise": lambda base: (
                    lambda self, batch, generator: base.sample_noise(
                        self, batch, torch.Generator().manual_seed(_calls(self))
                    )
                )
            },
            "its noise differs between two calls with equal generators",
        ),
    ],
    "the_condition_is_used": [({"condition": _blind}, "ignores features")],
    "gradients_where_promised": [
        (
            {"decay_groups": lambda base: lambda self: DecayGroups((), ())},
            "must contain each name of trainable_parameters exactly once",
        ),
        ({"generation_loss": _loss(_into_frozen)}, "has gradients for ['frozen.codebook']"),
        (
            {
                "trainable_parameters": _names(lambda names: [*names, "frozen.codebook"]),
                "decay_groups": lambda base: (
                    lambda self: DecayGroups(tuple(self.trainable_parameters()), ())
                ),
            },
            "no loss has gradients for ['frozen.codebook']",
        ),
        (
            {"trainable_parameters": _names(lambda names: [*names, "network.nothing"])},
            "names ['network.nothing']",
        ),
    ],
    "frozen_parts_stay": [
        (
            {"generation_loss": _loss(_moving_codebook)},
            "10 training steps changed ['frozen.codebook'] (1 in all)",
        ),
    ],
    "resume_is_exact": [
        ({"generation_loss": _loss(_stateful)}, "keeps state between steps"),
    ],
    "save_and_load": [({"save": _forgetful_save}, "differ after save and load_model")],
    "official_names": [
        ({"official_state": lambda base: lambda self: {}}, "has 0 of"),
    ],
    "images_ignore_the_batch": [
        ({"generate": _shared_noise}, "from the row's own generator"),
        ({"_states": _padding_is_seen}, "padding must not be attended to"),
        ({"generate": _global_noise}, "uses the global generator of torch"),
    ],
    "neutral_guidance": [
        ({"generate": _shifted_guidance}, "another neutral value"),
        ({"generate": _unguided}, "gives the same images as none"),
    ],
    "answers_ignore_the_batch": [({"answer": _longest_first}, "alone and")],
    "device_moves": [({"_seen": _on_the_cpu}, "on another device: ")],
}
CASES = [(check, *case) for check, cases in BREAKS.items() for case in cases]


@pytest.mark.parametrize(("check", "methods", "said"), CASES)
def test_each_check_fails_on_a_model_that_breaks_it(example, check, methods, said):
    outcome = run_check(Subject(broken(example, **methods)), check)
    assert outcome.status == "failed" and said in outcome.line, outcome
    assert "; look at " in outcome.line and "\n" not in outcome.line


def test_an_entry_that_does_not_fit_its_code(example, monkeypatch):
    wrong = registry.Family("my_model", "My model", module="my_model.nothing", edits=True)
    monkeypatch.setitem(registry.FAMILIES, "my_model", wrong)
    outcome = run_check(Subject(example.tiny()), "entry")
    assert outcome.status == "failed" and "has edits=True" in outcome.line
    monkeypatch.setitem(registry.FAMILIES, "my_model", replace(wrong, edits=False))
    assert "there is no source file" in run_check(Subject(example.tiny()), "entry").line
    unknown = example.tiny()
    unknown.family = "another"
    assert "model family 'another' is not known" in run_check(Subject(unknown), "entry").line


def test_an_entry_that_imports_torch(example, monkeypatch, tmp_path):
    (tmp_path / "heavy_entry.py").write_text("import sys\n\nsys.modules['torch'] = sys\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(planning, "entry_module", lambda name: "heavy_entry")
    outcome = run_check(Subject(example.tiny()), "entry")
    assert outcome.status == "failed"
    assert "importing heavy_entry, which holds the entry, imports torch, and" in outcome.line


def test_counts_that_are_methods_are_named(example):
    def sample_noise(self, batch, generator):
        return ((batch,),)

    outcome = run_check(
        Subject(broken(example, sample_noise=lambda base: sample_noise)), "counts_before_losses"
    )
    assert "what sample_noise of Broken gives, tuple, needs an attribute count" in outcome.line


def test_a_model_without_a_tokenizer_is_not_one_of_other_words(example):
    with pytest.raises(ValueError, match=r"this My model has no tokenizer;.*set_tokenizer"):
        Subject(example.build({}))


def test_what_a_model_raises_is_one_line_with_its_place(example):
    def fails(self, images, use):
        raise KeyError("pixels")

    outcome = run_check(
        Subject(broken(example, encode=lambda base: fails)), "encode_is_deterministic"
    )
    assert outcome.status == "failed"
    assert outcome.line.startswith("raised KeyError: 'pixels'; look at fails (conformance/test_")


def test_every_check_has_a_model_that_breaks_it():
    assert set(BREAKS) | {"entry"} == set(CHECKS)


def test_the_example_fulfils_the_contract(reca_check):
    reca_check()


@pytest.fixture(scope="module")
def reca_subject(subject):
    return subject


def test_texts_outside_a_vocabulary_are_named(example):
    def condition(self, texts, features=None):
        raise ValueError(f"{texts[0]!r}: not in this model's vocabulary")

    with pytest.raises(ValueError, match=r"none of the built-in texts.*give others with"):
        Subject(broken(example, condition=lambda base: condition))
