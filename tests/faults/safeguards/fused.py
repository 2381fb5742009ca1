"""Safeguards: the fused parts of a step."""

from __future__ import annotations

from safeguards.mutant import Mutant, test

FUSED = "tests/unit/test_fused.py"

MUTANTS: dict[str, Mutant] = {
    "a recomputation that stops early holds no graph": Mutant(
        file="trainer/model/fused_lora.py",
        old="            outputs = _outputs([self",
        new="            self.input = x\n            outputs = _outputs([self",
        caught_by=test(FUSED, "stops_early"),
    ),
    "a failed pass lets go of outputs that wait": Mutant(
        file="trainer/model/fused_lora.py",
        old="        self.input, self.waiting = None, {}\n\n\ndef _forward",
        new="        pass\n\n\ndef _forward",
        caught_by=test(FUSED, "lets_go"),
    ),
    "norms that compute something else are left alone": Mutant(
        file="trainer/model/fused_norm.py",
        old="torch.allclose(own, ours, rtol=close, atol=0.0)",
        new="True",
        caught_by=test(FUSED, "left_alone"),
    ),
    "families that rotate neighbours are left alone": Mutant(
        file="trainer/model/fused_rotary.py",
        old="return all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(ours, theirs, strict=True))",
        new="return True",
        caught_by=test(FUSED, "left_alone"),
    ),
    "a query attends to no later key of its block": Mutant(
        file="trainer/model/attention_each.py",
        old="[..., -queries:].add_",
        new="[..., :queries].add_",
        caught_by=test("tests/unit/test_attention.py", "gradients_in_blocks"),
    ),
    "packs have sizes that come again": Mutant(
        file="trainer/model/step.py",
        old="return batch.filled(rounded(batch.tokens))",
        new="return batch",
        caught_by=test("tests/unit/test_sizes.py", "layers_get"),
    ),
    "a router counts no token that fills a pack": Mutant(
        file="trainer/model/step.py",
        old=" or self.routing is not None or",
        new=" or",
        caught_by=test("tests/unit/test_sizes.py", "routers_see"),
    ),
    "the rows that fill a chunk of logits are no positions": Mutant(
        file="trainer/model/loss.py",
        old="        return (self.narrow[:size] @ weight)[:rows]\n",
        new="        return (self.narrow[:size] @ weight)[-rows:]\n",
        caught_by=test("tests/unit/test_sizes.py", "filling_changes"),
    ),
    "what fills a document comes after its tokens": Mutant(
        file="trainer/model/attention_each.py",
        old="        to[:, :length] = part.transpose(0, 1)\n        to[:, length:] = 0\n",
        new="        to[:, to.shape[1] - length :] = part.transpose(0, 1)\n        to[:, : to.shape[1] - length] = 0\n",
        caught_by=test("tests/unit/test_attention.py", "gradients_in_blocks"),
    ),
    "a plan whose pass cannot be halved leaves room": Mutant(
        file="trainer/plan/choose.py",
        old="    fitting = safe or fitting\n",
        new="",
        caught_by=test("tests/unit/test_plan.py", "default_recipe_fits"),
    ),
}
