"""Compares every line of a plan with the memory of the real objects, on a CPU."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import bitsandbytes as bnb
import pytest
import torch
from planning import ARCHITECTURES, Live, batch_of, built, make_small, make_wide, planned, recipe_for, storages

from trainer.fit.optimizer import OPTIMIZERS, make_optimizer
from trainer.model import checkpointing, fused_lora, fused_mlp, loss
from trainer.plan import memory
from trainer.plan.memory import Choice, kept_lines, norm_bytes, peak_bytes, working_lines
from trainer.plan.static import static_lines, weight_bytes

TOKENS = 256
WHOLE = Choice(micro_batch_tokens=64, checkpointing="none", offload=False)


@pytest.fixture(scope="module", params=["tiny", "wide"])
def base(request, tmp_path_factory):
    return "tiny-qwen2" if request.param == "tiny" else make_wide(tmp_path_factory.mktemp("wide"))


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"base__double_quantization": False, "base__compute_dtype": "bfloat16"},
        {"base__quantization": "none", "training__optimizer": "adamw", "base__compute_dtype": "bfloat16"},
        {"lora__rank": 37, "lora__targets": ["q_proj", "down_proj"]},
        {"training__adapter_dtype": "bfloat16"},
    ],
    ids=["nf4 double", "nf4 single", "16 bit", "two targets", "16-bit adapter"],
)
def test_static_lines_are_exact(base, overrides):
    check_static_lines(recipe_for(base, **({"base__compute_dtype": "float32"} | overrides)))


def check_static_lines(recipe):
    model = built(recipe, WHOLE)
    optimizer = make_optimizer(model.parameters(), recipe.training)
    model(batch_of(64))[0].backward()
    optimizer.step()
    found = {line.name: line.bytes for line in static_lines(planned(recipe)[0], recipe, planned(recipe)[1])}
    assert found == held(model, optimizer, recipe)


@pytest.mark.parametrize(("optimizer", "beta1"), [*((name, 0.9) for name in OPTIMIZERS), ("sgd", 0.0)])
def test_every_optimizers_memory_is_exact(optimizer, beta1):
    overrides = {"training__optimizer": optimizer, "training__beta1": beta1}
    recipe = recipe_for("tiny-qwen2", base__compute_dtype="float32", lora__targets=["q_proj", "down_proj"], **overrides)
    check_static_lines(recipe)


@pytest.mark.parametrize(
    ("name", "quantization"),
    [("llama", "none"), ("llama", "nf4"), ("qwen3", "none"), ("qwen3", "nf4"), ("mixtral", "none")],
)
def test_static_lines_of_other_architectures_are_exact(name, quantization, tmp_path):
    recipe = recipe_for(
        make_small(tmp_path, name), base__quantization=quantization, base__compute_dtype="bfloat16",
        lora__targets=["q_proj", "k_proj", "v_proj", "o_proj"],
    )  # fmt: skip
    check_static_lines(recipe)


def test_the_bytes_of_quantized_experts_are_exact(tmp_path):
    recipe = recipe_for(make_small(tmp_path, "mixtral"), base__compute_dtype="bfloat16", lora__targets=["q_proj"])
    shape, sizes = planned(recipe)
    expected = Counter()
    for matrix in shape.matrices:
        weights = torch.randn(matrix.experts, matrix.outputs, matrix.inputs, dtype=torch.bfloat16)
        packed, state = bnb.functional.quantize_4bit(weights, quant_type="nf4", compress_statistics=True)
        expected["weights (NF4)"] += packed.nbytes
        expected["quantization constants"] += sum(
            t.nbytes for t in (state.absmax, state.code, state.offset, *nested(state))
        )
    assert weight_bytes(shape, recipe.base, sizes) == expected
    assert [matrix.name for matrix in shape.layer_matrices][-2:] == ["gate_up_proj", "down_proj"]


def held(model, optimizer, recipe) -> dict[str, int]:
    """Return the bytes that the objects hold, by the plan's names."""
    causal = model.model.get_base_model()
    linears = [m.base_layer if hasattr(m, "base_layer") else m for m in decoder_linears(causal)]
    states = [m.quant_state for m in linears if hasattr(m, "quant_state")]
    constants = [t for s in states for t in (s.absmax, s.code, s.offset, *nested(s))]
    ends = [causal.get_input_embeddings().weight, causal.get_output_embeddings().weight]
    trained = [p for p in model.parameters() if p.requires_grad]
    experts = [p for p in causal.parameters() if p.ndim == 3]
    routers = storages(p for name, p in causal.named_parameters() if name.endswith("mlp.gate.weight"))
    weights = storages([*(m.weight for m in linears), *experts])
    known = {*weights, *routers, *storages(ends), *storages(trained)}
    rest = {k: v for k, v in storages([*causal.parameters(), *causal.buffers()]).items() if k not in known}
    sizes = {
        "weights (NF4)" if states else "weights": sum(weights.values()),
        "quantization constants": sum(storages(constants).values()),
        "embeddings": ends[0].nbytes,
        "output head": 0 if ends[0] is ends[1] else ends[1].nbytes,
        "routers": sum(routers.values()),
        "norms, biases, positions": sum(rest.values()),
        f"adapter ({recipe.training.adapter_dtype})": sum(storages(trained).values()),
        f"gradients ({recipe.training.adapter_dtype})": sum(storages(p.grad for p in trained).values()),
        f"optimizer ({recipe.training.optimizer})": sum(
            storages(value for state in optimizer.state.values() for value in state.values()).values()
        ),
    }
    return {name: size for name, size in sizes.items() if size}


def nested(state):
    return (state.state2.absmax, state.state2.code) if state.nested else ()


def decoder_linears(causal):
    """Return the decoder's linear layers. An adapted layer counts as one, without the adapter's own layers."""
    for layer in checkpointing.decoder_layers(causal):
        for part in (layer.self_attn, layer.mlp):
            yield from (child for name, child in part.named_children() if name.endswith("_proj"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("policy", ["none", "selective", "full"])
@pytest.mark.parametrize("overrides", [{}, {"lora__dropout": 0.0}, {"lora__targets": ["v_proj", "up_proj"]}])
def test_what_is_kept_for_the_backward_pass(base, policy, dtype, overrides):
    check_kept(recipe_for(base, base__compute_dtype=dtype, **overrides), policy)


def check_kept(recipe, policy):
    dtype = recipe.base.compute_dtype
    choice = Choice(micro_batch_tokens=TOKENS, checkpointing=policy, offload=False)
    model = built(recipe, choice)
    shape, sizes = planned(recipe)
    saved, alive = {}, []
    weights = storages([*model.parameters(), *model.buffers()])

    def see(tensor):
        alive.append(tensor)  # another tensor may reuse the address later
        saved.update({k: v for k, v in storages([tensor]).items() if k not in weights})
        return tensor

    decoder = model.model.get_base_model()
    decoder.set_attn_implementation("sdpa")  # one call for the pack, as on a GPU
    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor), autocast(dtype):
        decoder.model(input_ids=batch_of(TOKENS).ids, use_cache=False)
    lines = {line.name: line.bytes for line in kept_lines(shape, choice, sizes)}
    if policy == "full":  # the layers' calls hold the positions, not autograd
        del lines["positions"]
    predicted = sum(lines.values()) + norm_bytes(shape, sizes) * TOKENS  # the plan counts the last norm with the loss
    assert predicted == pytest.approx(sum(saved.values()), rel=0.05)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("policy", ["none", "selective", "full"])
def test_what_other_architectures_keep_for_the_backward_pass(name, policy, tmp_path):
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    recipe = recipe_for(
        make_small(tmp_path, name), base__quantization="none", base__compute_dtype="bfloat16", lora__targets=targets
    )
    check_kept(recipe, policy)


@pytest.mark.parametrize(
    ("policy", "offload"),
    [("none", False), ("selective", False), ("full", False), ("selective", True), ("full", True)],
)
@pytest.mark.parametrize("words", [1 << 17, 1 << 22], ids=["layer at the peak", "loss at the peak"])
def test_the_peak_of_a_step(base, policy, offload, words, monkeypatch):
    """With a small loss chunk the peak is in a layer. With a large one it is in the loss."""
    recipe = recipe_for(base, base__compute_dtype="bfloat16")
    choice = Choice(micro_batch_tokens=TOKENS, checkpointing=policy, offload=offload)
    predicted, measured = peaks_of_a_step(recipe, choice, words, monkeypatch)
    assert predicted == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("policy", ["none", "selective", "full"])
def test_the_peak_of_a_step_of_other_architectures(name, policy, tmp_path, monkeypatch):
    """These are narrow, so that what a plan leaves out weighs more."""
    recipe = recipe_for(
        make_small(tmp_path, name), base__quantization="none", base__compute_dtype="bfloat16",
        lora__targets=["q_proj", "k_proj", "v_proj", "o_proj"],
    )  # fmt: skip
    choice = Choice(micro_batch_tokens=1024, checkpointing=policy, offload=False)
    predicted, measured = peaks_of_a_step(recipe, choice, 1 << 17, monkeypatch)
    assert predicted == pytest.approx(measured, rel=0.08)


def peaks_of_a_step(recipe, choice, words, monkeypatch) -> tuple[int, int]:
    """Return the predicted and the measured peak."""
    for module in (loss, memory):
        monkeypatch.setattr(module, "CHUNK_LOGITS", words)
    monkeypatch.setattr(memory, "OFFLOAD_BUFFERS", 1)  # a CPU copies back on demand
    monkeypatch.setattr(loss, "CPU_POSITIONS", choice.micro_batch_tokens)
    monkeypatch.setattr(loss, "_has_cache", lambda hidden: False)
    monkeypatch.setattr(fused_mlp, "CPU_PIECE", 1 << 12)  # as small a part of the whole as a GPU's
    monkeypatch.setattr(fused_lora, "_draw", mask_of_a_card)
    model = built(recipe, choice)
    model.model.get_base_model().set_attn_implementation("sdpa")
    batch = batch_of(choice.micro_batch_tokens)
    with Live() as first:
        step(model, batch)
    before = {address for _, address in first.sizes.values()}  # gradients and host buffers
    with Live(before) as second:
        step(model, batch)
    shape, sizes = planned(recipe)
    lines = kept_lines(shape, choice, sizes) + working_lines(shape, recipe.base, choice, sizes)
    return peak_bytes(lines), second.peak


def mask_of_a_card(rows, rate):
    """Draw a dropout mask as a GPU does. A CPU would hold its noise in one more tensor."""
    return torch.empty_like(rows, dtype=torch.bool).bernoulli_(1.0 - rate), 1.0 - rate


def step(model, batch):
    causal = model.model.get_base_model()
    with autocast("bfloat16"):
        hidden = causal.model(input_ids=batch.ids, use_cache=False).last_hidden_state[0]
        total, _ = loss.supervised_loss(hidden[batch.predicting], causal.get_output_embeddings(), batch.labels)
        del hidden
    total.backward()


def autocast(dtype: str):
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")


def test_each_policy_keeps_less_than_the_one_before(base):
    recipe = recipe_for(base, base__compute_dtype="bfloat16")
    shape, sizes = planned(recipe)
    order = [("none", False), ("selective", False), ("selective", True), ("full", False), ("full", True)]
    peaks = []
    for policy, offload in order:
        choice = Choice(micro_batch_tokens=TOKENS, checkpointing=policy, offload=offload)
        peaks.append(peak_bytes(kept_lines(shape, choice, sizes)))
    assert all(more > less for more, less in pairwise(peaks))
