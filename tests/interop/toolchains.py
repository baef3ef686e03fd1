"""Builds the clients of clients/ with their own languages' tools, each in a copy of the tree; what is fetched is kept.

A language whose toolchain is missing is skipped by name, or fails in CI (see `environments.not_to_be_had`).
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.interop.environments import home, node_with, not_to_be_had

ROOT = Path(__file__).parents[2]
BUILD_S = 900
DEBIAN_GO = "debian-go"
"""Where `.ci/tools` puts Go and gRPC's packages for it."""


def tree_of(language: str, folder: Path) -> Path:
    """A copy of one client, with the contract where it expects it; returns the client's folder."""
    shutil.copytree(ROOT / "protos", folder / "protos", dirs_exist_ok=True)
    shutil.copytree(ROOT / "clients" / "google", folder / "clients" / "google", dirs_exist_ok=True)
    ignored = shutil.ignore_patterns("node_modules", "dist", "generated", "build", "bin", "tokenwirev1")
    client = folder / "clients" / language
    shutil.copytree(ROOT / "clients" / language, client, dirs_exist_ok=True, ignore=ignored)
    return client


def run(command: list[object], folder: Path, **environment: str) -> None:
    """Run a step of a build; it must succeed."""
    variables = {**os.environ, **environment}
    words = list(map(str, command))
    done = subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True, timeout=BUILD_S)
    assert done.returncode == 0, f"{' '.join(words)}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def tool(language: str, name: str) -> str:
    """The path of a tool, or this language's test is skipped."""
    found = shutil.which(name)
    if found is None:
        not_to_be_had(f"{language}: {name} is not installed")
    return str(found)


def go_client(folder: Path) -> Path:
    """The folder of the Go client's programs, built with Debian's packages where they are, else modules, and tested."""
    client, buf = tree_of("go", folder), Path(sys.executable).parent / "buf"
    cache = {"GOCACHE": str(home() / "go-build"), "CGO_ENABLED": "0"}
    debian = home() / DEBIAN_GO
    if (debian / "complete").is_file():
        root, plugins = debian / "usr" / "lib" / "go-1.24", debian / "usr" / "bin"
        run([buf, "generate", "--template", "buf.gen.yaml"], client, PATH=f"{plugins}:{os.environ['PATH']}")
        package = folder / "gopath" / "src" / "tokenwire"
        package.parent.mkdir(parents=True)
        client.rename(package)
        gopath = f"{folder / 'gopath'}:{debian / 'usr' / 'share' / 'gocode'}"
        variables = {**cache, "GOROOT": str(root), "GOPATH": gopath, "GO111MODULE": "off", "GOFLAGS": ""}
        go = root / "bin" / "go"
    else:
        package, variables = client, cache
        go = Path(tool("Go", "go"))
        tool("Go", "protoc-gen-go"), tool("Go", "protoc-gen-go-grpc")
        run([buf, "generate", "--template", "buf.gen.yaml"], client)
        run([go, "mod", "tidy"], client, **variables)
    run([go, "vet", "./..."], package, **variables)
    run([go, "test", "-timeout", "60s", "."], package, **variables)
    run([go, "build", "-o", "bin/", "./cmd/..."], package, **variables)
    return package / "bin"


def node_client(folder: Path) -> tuple[Path, Path]:
    """Node, and the folder of the Node client's programs, which is tested."""
    packages = ("@grpc/grpc-js@1.14.7", "@grpc/proto-loader@0.8.1", "protobufjs@7.6.6", "typescript@5.9.3")
    node, installed = node_with("node-client", *packages, "@types/node@20.19.0")
    client = tree_of("node", folder)
    (client / "node_modules").symlink_to(installed / "node_modules")
    npm = node.parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    for step in ("generate", "compile", "test"):
        run([node, npm, "run", step], client, PATH=f"{node.parent}:{os.environ['PATH']}")
    return node, client / "dist"


def java_client(folder: Path) -> Path:
    """The folder of the Java client's programs, made with Debian's jars, and tested."""
    for name in ("make", "javac", "protoc", "grpc_java_plugin"):
        tool("Java", name)
    if not Path("/usr/share/java/grpc-netty.jar").is_file():
        not_to_be_had("Java: grpc-java is not installed (Debian: libgrpc-java)")
    client, flags = tree_of("java", folder), []
    native = Path("/usr/lib/x86_64-linux-gnu/jni/libnetty-tcnative.so")
    if (
        native.is_file()
    ):  # Debian's netty has no ALPN but through OpenSSL, whose library it looks for under another name
        (folder / "jni").mkdir()
        shutil.copy(native, folder / "jni" / "libnetty_tcnative.so")
        flags = [f"JAVA_FLAGS=-Djava.library.path={folder / 'jni'}"]
    run(["make", *flags, "all", "test"], client)
    return client / "build"


def cpp_client(folder: Path) -> Path:
    """The folder of the C++ client's programs."""
    for name in ("cmake", "g++", "pkg-config", "protoc", "grpc_cpp_plugin"):
        tool("C++", name)
    if subprocess.run(["pkg-config", "--exists", "grpc++"], timeout=60).returncode:
        not_to_be_had("C++: grpc++ is not installed (Debian: libgrpc++-dev)")
    client = tree_of("cpp", folder)
    run(["cmake", "-S", ".", "-B", "build", "-DCMAKE_BUILD_TYPE=Debug"], client)
    run(["cmake", "--build", "build", "-j2"], client)
    return client / "build"
