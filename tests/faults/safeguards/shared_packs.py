"""Safeguards: several processes share each pack."""

from __future__ import annotations

from safeguards.mutant import Mutant, test

SHARED = test("tests/unit/test_sequence.py", "give_the_result_of_one and ddp")

MUTANTS: dict[str, Mutant] = {
    "processes that share a pack attend to all of it": Mutant(
        file="trainer/model/sequence.py",
        old="    dist.all_to_all_single(received, sent, group=group)\n    return received\n",
        new="    return sent\n",
        caught_by=SHARED,
    ),
    "gradients of attention go back to the process that has the tokens": Mutant(
        file="trainer/model/sequence.py",
        old="        return _all_to_all(grad, ctx.group), None\n",
        new="        return grad, None\n",
        caught_by=SHARED,
    ),
    "key heads are repeated where the processes cannot share them": Mutant(
        file="trainer/model/sequence.py",
        old="    return size // gcd(key_heads, size)\n",
        new="    return 1\n",
        caught_by=test("tests/unit/test_sequence.py", "repeated_as_little"),
    ),
    "the last token of a share predicts the first of the next": Mutant(
        file="trainer/model/batch.py",
        old="torch.tensor([tokens.start, tokens.stop])",
        new="torch.tensor([tokens.start, tokens.stop - 1])",
        caught_by=SHARED,
    ),
    "held-out losses belong to the samples of the whole pack": Mutant(
        file="trainer/model/batch.py",
        old="self.predicting + self.start, right=True",
        new="self.predicting, right=True",
        caught_by=test("tests/unit/test_sequence.py", "shares_of_a_pack"),
    ),
    "processes that share packs get the same samples": Mutant(
        file="trainer/fit/passes.py",
        old="accelerator.process_index // together, accelerator.num_processes // together\n",
        new="accelerator.process_index, accelerator.num_processes\n",
        caught_by=test("tests/unit/test_sequence.py", "get_the_same_ones"),
    ),
    "a process that runs out of memory in a shared pack leaves no other waiting": Mutant(
        file="trainer/fit/together.py",
        old="        return self.sharded or self.model.shared.size > 1\n",
        new="        return self.sharded\n",
        caught_by=test("tests/unit/test_sequence.py", "out_of_memory_ends"),
    ),
}
