#!/usr/bin/env bash
# Resolve the pinned, hashed requirements again: requirements/lock.sh [extra uv flags]
#   cpu.txt  what the program needs on a machine without a GPU, torch left out (its build differs by platform)
#   dev.txt  cpu.txt and the tools for `make check` and `make test`
#   gpu.txt  torch's CUDA build and everything it needs, for Linux x86-64
#   flash-attn.txt, flash-attn-build.txt  flash-attn and what compiles it, for the image's FLASH_ATTN=1
# Needs uv (`pip install uv`).
set -euo pipefail
cd "$(dirname "$0")/.."

lock() { uv pip compile pyproject.toml requirements/dev.in -c requirements/torch.txt --python-version 3.11 \
  --generate-hashes --no-header --no-annotate --quiet "$@"; }

cuda=(cuda-bindings cuda-pathfinder cuda-toolkit triton nvidia-{cublas,cuda-cupti,cuda-nvrtc,cuda-runtime,cudnn-cu13}
  nvidia-{cufft,cufile,curand,cusolver,cusparse,cusparselt-cu13,nccl-cu13,nvjitlink,nvshmem-cu13,nvtx})
without_torch=(--no-emit-package torch); for name in "${cuda[@]}"; do without_torch+=(--no-emit-package "$name"); done

lock "${without_torch[@]}" "$@" -o requirements/cpu.txt
lock --extra dev "${without_torch[@]}" "$@" -o requirements/dev.txt
lock --python-platform x86_64-manylinux_2_28 "$@" -o requirements/gpu.txt requirements/torch.txt

# What flash-attn and CUDA's compiler need is in gpu.txt already.
for name in flash-attn flash-attn-build; do
  uv pip compile requirements/$name.in --no-deps --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
    --generate-hashes --no-header --no-annotate --quiet "$@" -o requirements/$name.txt
done
