# The worker's image. `wuwan image build` builds it and gives it the name that wuwan looks for; by
# hand, from the repository's root:
#
#     docker build -t wuwan:mine --build-arg VERSION=0.1.0 .
#     docker build -t wuwan:mine-gpu --build-arg VERSION=0.1.0 --build-arg VARIANT=gpu .
#
# Behind a proxy or a private index, pass what pip needs: --build-arg PIP_INDEX_URL=…, or
# --build-arg BASE=… for a base image of your own that has Python 3.11, its pip and your CA bundle.
#
# Written for the legacy builder too (docker-py's images.build speaks to that one): no RUN --mount,
# no heredoc, no COPY --chmod, and no stage for each variant, since that builder makes every stage it reads.
ARG BASE=python:3.11-slim

# --- The dependencies, rebuilt only when the pins change.
FROM ${BASE} AS dependencies
# cpu or gpu
ARG VARIANT=cpu
# pip reads these from its environment. They reach this stage only, never the final image.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG PIP_CERT
ARG PIP_DEFAULT_TIMEOUT
COPY image/requirements-cpu.txt image/requirements-${VARIANT}.txt /tmp/
# --no-deps: the files name everything that is needed. sed drops what only openvino's converter imports.
# pip is the base's own and stays outside of the environment, which therefore holds nothing but the pins.
#
# In the same step, so that no layer keeps it, everything goes that inference does not need:
# - openvino's wheel carries every device and every model format: 80 of its 178 MB do nothing for ONNX and IR
#   on a CPU. Its converter (tools) is an optional import of openvino itself and costs 70 ms at each start.
# - Of the CUDA wheels stay the libraries that torch's are linked with (the loader wants them, whether or not
#   they are used) and those that they load by name: cuDNN's, of which `adv` has the LSTM of one of timm's
#   architectures, and NVRTC with its builtins. cuSOLVER would be loaded for linear algebra only. cuRAND is
#   named by torch but none of its functions is: the loader is given a library in its place that is there.
RUN sed -i '/^openvino-telemetry/d' /tmp/requirements-cpu.txt \
    && python3 -m venv --without-pip /opt/wuwan \
    && python3 -m pip --python /opt/wuwan/bin/python install \
        --no-cache-dir --no-compile --no-deps --disable-pip-version-check -r /tmp/requirements-${VARIANT}.txt \
    && cd /opt/wuwan/lib/python3*/site-packages \
    && rm -rf openvino/include openvino/cmake openvino/tools openvino/libs/cache.json \
        openvino/libs/libopenvino_intel_gpu_plugin.so openvino/libs/libopenvino_intel_npu_plugin.so \
        openvino/libs/libopenvino_tensorflow_frontend.so* openvino/libs/libopenvino_tensorflow_lite_frontend.so* \
        openvino/libs/libopenvino_pytorch_frontend.so* openvino/libs/libopenvino_paddle_frontend.so* \
        openvino/libs/libopenvino_jax_frontend.so* openvino/libs/libopenvino_gguf_frontend.so* \
    && rm -rf torch/include torch/share torch/bin/protoc* torch/testing/_internal/py312_*.py \
        torch/lib/libtorch_cuda_linalg.so onnx/backend onnx/reference nvidia/*/include nvidia/nvshmem/lib/nvshmem_* \
        nvidia/cu13/lib/libcufftw.so.* nvidia/cu13/lib/libnvblas.so.* nvidia/cu13/lib/*.alt.so.* \
        nvidia/cu13/lib/libcufile_rdma.so.* nvidia/cu13/lib/libnvperf_*.so nvidia/cu13/lib/libcheckpoint.so \
        nvidia/cu13/lib/libpcsamplingutil.so \
    && if [ "${VARIANT}" = gpu ]; then ln -s libcudart.so.13 nvidia/cu13/lib/libcurand.so.10; fi \
    && find . -type d -name tests -prune -exec rm -rf {} + \
    && find . -name '*.pyi' -delete -o -name '*.h' -delete -o -name '*.cc' -delete -o -name '*.a' -delete \
        -o -name '*.bc' -delete
# The container's file system is read-only, so Python cannot cache bytecode there: compile all of it now.
# unchecked-hash: nobody edits these files, so no start has to look at the sources.
RUN /opt/wuwan/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/wuwan/lib \
    && /opt/wuwan/bin/python -c "import msgpack, numpy, openvino, PIL.Image, pillow_heif, simplejpeg; \
from openvino.frontend import FrontEndManager; \
assert 'CPU' in openvino.Core().available_devices; \
assert 'onnx' in FrontEndManager().get_available_front_ends()" \
    && if [ "${VARIANT}" = gpu ]; then /opt/wuwan/bin/python -c "import onnx, safetensors.torch, timm, torch, torchvision; \
assert torch.version.cuda and torch.ops.image.decode_jpegs_cuda"; fi

# --- The worker: a small layer, so that a change of ours costs megabytes and not hundreds.
FROM dependencies AS worker
COPY image/wuwan_worker /app/wuwan_worker
COPY image/推理.py /app/推理.py
# A build context may bring the host's bytecode along, and, from a checkout made under umask 077, files that
# the worker's user cannot read.
RUN find /app -name __pycache__ -prune -exec rm -rf {} + \
    && /opt/wuwan/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /app/wuwan_worker \
    && PYTHONPATH=/app WUWAN_COMPILED=/app/compiled /opt/wuwan/bin/python -m wuwan_worker.programs.precompile \
    && chmod -R a+rX /app

# --- The image.
FROM ${BASE}
# A base may come without the standard library's bytecode (the official Python images delete it), and
# compiling what the worker imports takes 145 ms, anew at each start.
RUN groupadd --gid 10001 wuwan \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /app --shell /usr/sbin/nologin wuwan \
    && python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash \
        -x '/(site-packages|dist-packages|test|tests|idlelib|lib2to3|tkinter|turtledemo|ensurepip|pydoc_data|distutils)/' \
        "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
# Of a GPU's driver the container gets what is named here: `video` has the JPEG decoder. torchvision's import
# makes the directory that torch.compile would write to, which fails unless it is there already.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility,video \
    LANG=C.UTF-8 \
    PATH=/opt/wuwan/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TORCHINDUCTOR_CACHE_DIR=/app \
    WUWAN_COMPILED=/app/compiled
COPY --from=dependencies /opt/wuwan /opt/wuwan
COPY --from=worker /app /app
WORKDIR /app
# By number, so that a cluster's "must not run as root" rule can see it.
USER 10001:10001
CMD ["python", "-m", "wuwan_worker"]
ARG VARIANT=cpu
ARG VERSION=0.0.0
LABEL org.opencontainers.image.title="wuwan" \
      org.opencontainers.image.description="Tags photos with Chinese labels: the wuwan worker, ${VARIANT}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      io.wuwan.variant="${VARIANT}"
