"""The contract of reca for this model."""

from dataclasses import dataclass, replace

import torch
from reca_kernels.ops import linear_cross_entropy
from torch import Tensor

from my_model.network import Config, Network, Options, Patches
from reca.models.common.batching import padded, row_noise
from reca.models.common.digest import digest
from reca.models.common.family import FamilyModel, WeightFile
from reca.models.common.naming import Naming
from reca.models.common.options import check_generation, parse
from reca.models.common.tokenizer import IGNORE, TextFrontEnd, without_image_tag
from reca.models.contract import DecayGroups, Loss

END = "<end>"  # begins and ends a text


class Text(TextFrontEnd):
    """One token per byte, so every text is known."""

    end = 256

    def check(self, where):
        if self.tokenizer.convert_tokens_to_ids(END) != self.end:
            raise ValueError(f"{where}: token {self.end} must be {END}")


@dataclass(frozen=True)
class Rows:
    """Text ids [B, T] and which are real, what is seen [B, N, P]; of a loss labels and count."""

    ids: Tensor | None = None
    real: Tensor | None = None
    seen: Tensor | None = None
    labels: Tensor | None = None
    count: int = 0


class MyModel(FamilyModel):
    """Text and images as one sequence of tokens, each predicted from those before it."""

    family, title, front_end = "my_model", "My model", Text

    def __init__(self, config, options):
        super().__init__(config, options, Network(config), Patches(config))

    @torch.no_grad()
    def encode(self, images, use):
        values = self.frozen.values(images)
        return {"target": self.frozen.nearest(values).to(torch.int16), "understanding": values}

    def encoder_fingerprint(self, use):
        return digest(dict(self.frozen.named_parameters()), {"size": self.frozen.size})

    def condition(self, texts, features=None):
        rows = [[self.text.end, *ids] for ids in self.text.ids(texts)]
        return Rows(*padded(rows, self.text.end), self._seen(features))

    def unconditional(self, batch):
        return Rows(*padded([[self.text.end]] * batch, self.text.end))

    def sample_noise(self, batch, generator):
        tokens = (self.config.resolution // self.config.patch) ** 2
        kept = torch.rand(batch, generator=generator) >= self.options.text_dropout
        return Rows(real=kept, count=batch * tokens)

    def generation_loss(self, target, condition, noise):
        real = condition.real.clone()
        real[:, 1:] &= noise.real[:, None]  # a text that is dropped keeps its begin
        codes = self._here(target["target"]).long()
        hidden = self._states(replace(condition, real=real), codes[:, :-1])
        head = self.network.head
        total = linear_cross_entropy(hidden, head.weight, codes, head.bias, reduction="sum")
        return Loss(total, noise.count)

    def conversation(self, turns, with_image=True):
        ids, labels, end = [], [], self.text.end
        for conversation in turns:
            row, wanted = [end], []
            for question, answer in conversation:
                asked, said = self.text.ids([without_image_tag(question), answer])
                row += [*asked, end, *said, end]
                wanted += [IGNORE] * (len(asked) + 1) + [*said, end]
            ids.append(row)
            labels.append([*wanted, IGNORE])  # each label is the next id
        labels, _ = padded(labels, IGNORE)
        return Rows(*padded(ids, end), labels=labels, count=int((labels != IGNORE).sum()))

    def answer_loss(self, conversation, features):
        hidden = self._states(replace(conversation, seen=self._seen(features)))
        words, labels = self.network.llm.embed_tokens.weight, self._here(conversation.labels)
        return Loss(
            linear_cross_entropy(hidden, words, labels, reduction="sum"), conversation.count
        )

    @torch.no_grad()
    def generate(self, condition, unconditional, sampling, generators):
        scale, head = sampling.guidance, self.network.head
        guided = scale not in (0.0, 1.0)  # u + s (c - u)
        check_generation(len(condition.ids), generators, unconditional, scale if guided else None)
        codes = self._here(torch.empty(len(generators), 0, dtype=torch.long))
        for _ in range((self.config.resolution // self.config.patch) ** 2):
            logits = head(self._states(condition, codes)[:, -1])
            if guided:
                other = head(self._states(unconditional, codes)[:, -1])
                logits = other + scale * (logits - other)
            uniform = row_noise(generators, lambda g: torch.rand(head.out_features, generator=g))
            gumbel = self._here(-torch.log(-torch.log(uniform.clamp(1e-9, 1 - 1e-7))))
            choice = (logits / sampling.temperature + gumbel).argmax(-1, keepdim=True)
            codes = torch.cat([codes, choice], dim=1)
        return self.frozen.pictures(codes)

    @torch.no_grad()
    def answer(self, questions, features, max_new_tokens=32):
        seen, end, found = self._seen(features), self.text.end, []
        for row, ids in enumerate(self.text.ids([without_image_tag(q) for q in questions])):
            own, text = None if seen is None else seen[row : row + 1], [end, *ids, end]
            asked = len(text)
            while len(text) < asked + max_new_tokens and (len(text) == asked or text[-1] != end):
                state = self.network(own, *map(self._here, padded([text], end)))[0, -1]
                text.append(int((self.network.llm.embed_tokens.weight @ state).argmax()))
            found.append(self.text.decoded(text[asked:]))
        return found

    def decay_groups(self):
        weights = [(n, w.dim() > 1) for n, w in self.named_parameters() if n.startswith("network.")]
        return DecayGroups(
            *(tuple(n for n, big in weights if big == kind) for kind in (True, False))
        )

    def weight_files(self):
        patches = WeightFile("patches", "patches.safetensors", self.frozen, Naming())
        return [WeightFile("weights", "model.safetensors", self.network, Naming()), patches]

    def _here(self, tensor):
        return tensor.to(self.network.head.weight.device)

    def _seen(self, features):
        return None if features is None else self._here(features["understanding"])

    def _states(self, rows, codes=None):
        seen = None if rows.seen is None else self._here(rows.seen)
        return self.network(seen, self._here(rows.ids), self._here(rows.real), codes)


def build(network):
    """An untrained model of the section `network` of a model configuration."""
    return MyModel(*parse(network, Config, Options))


def tiny():
    """Random weights and a tokenizer of bytes: what `reca check-model my_model` runs on."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build({})
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), END]
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    model.set_tokenizer(PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END))
    return model
