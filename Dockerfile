# The web page, served by a user without privileges:
#   docker build -t audiosep . && docker run --rm -p 127.0.0.1:7860:7860 audiosep --no_auth
FROM python:3.12-slim
COPY pyproject.toml README.md LICENSE /src/
COPY audiosep_jax /src/audiosep_jax
RUN pip install --no-cache-dir '/src[cpu,demo]' && rm -r /src
RUN useradd --create-home --uid 1000 page
USER page
WORKDIR /home/page
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as x; x.urlopen('http://127.0.0.1:7860/', timeout=5)"]
ENTRYPOINT ["audiosep", "demo", "--host", "0.0.0.0", "--port", "7860"]
