"""Languages by linguist's tables, and what tells languages with one extension apart."""

from __future__ import annotations

import pytest

from service.intake.languages import language, may_be_source


@pytest.mark.parametrize(
    ("name", "spoken"),
    [
        ("a.kts", "kotlin"), ("build.gradle.kts", "kotlin"), ("build.gradle", "groovy"), ("a.cu", "cuda"),
        ("a.svelte", "svelte"), ("a.vue", "vue"), ("a.mts", "typescript"), ("a.tsx", "typescript"),
        ("a.ps1", "powershell"), ("a.sol", "solidity"), ("a.sv", "systemverilog"), ("a.zig", "zig"), ("a.nim", "nim"),
        ("a.ex", "elixir"), ("a.erl", "erlang"), ("a.clj", "clojure"), ("a.jl", "julia"), ("a.proto", "protobuf"),
        ("a.tf", "terraform"), ("a.graphql", "graphql"), ("a.F90", "fortran-free-form"), ("a.CPP", "cpp"),
        ("Dockerfile", "dockerfile"), ("Dockerfile.dev", "dockerfile"), ("api.dockerfile", "dockerfile"),
        ("Gemfile", "ruby"), ("Rakefile", "ruby"), ("Jenkinsfile", "groovy"), ("Jenkinsfile.release", "groovy"),
        ("CMakeLists.txt", "cmake"), ("Makefile.am", "makefile"), ("Makefile.win", "makefile"),
        ("BUILD.bazel", "starlark"),
        ("WORKSPACE", "starlark"), ("Vagrantfile", "ruby"), ("meson.build", "meson"), ("x.blade.php", "blade"),
        ("a.cxx", "cpp"), ("a.scss", "scss"), ("a.S", "assembly"), ("a.pyi", "python"),
        ("Gemfile.lock", None), ("package.json", None), ("README.md", None), ("LICENSE", None), ("notes.txt", None),
        ("Dockerfile.lock", None), ("a.svg", None), ("a.1", None), ("a.unheard-of", None), ("build", None),
    ],
)  # fmt: skip
def test_a_name_says_the_language(name: str, spoken: str | None):
    assert language(name, "x\n") == spoken
    assert may_be_source(name) in ((True,) if spoken else (False, None))


@pytest.mark.parametrize(
    ("extension", "content", "spoken"),
    [
        ("pl", ":- module(lists, [last/2]).\nlast(X, [X]).\n", "prolog"),
        ("pl", "% family\nparent(tom, bob).\nparent(bob, ann).\n", "prolog"),
        ("pl", "#!/usr/bin/env swipl\nmain.\n", "prolog"),
        ("pl", "use strict;\nmy $x = $y ? 1 :-1;\n", "perl"),
        ("pl", 'print "hi\\n";\n', "perl"),
        ("m", "#import <Foundation/Foundation.h>\n", "objective-c"),
        ("m", "function y = square(x)\n  y = x ^ 2;\nend\n", "matlab"),
        ("m", "% a script\nx = 1:10;\n", "matlab"),
        ("m", "(* ::Package:: *)\nf[x_] := x\n", "mathematica"),
        ("h", "class A {};\n", "cpp"),
        ("h", "@interface A : NSObject\n@end\n", "objective-c"),
        ("h", "int f(void);\n", "c"),
        ("v", "module adder(input a);\nendmodule\n", "verilog"),
        ("v", "Theorem t : True.\nProof. exact I. Qed.\n", "coq"),
        ("v", "module main\n\nfn main() {\n\tprintln('hi')\n}\n", "v"),
        ("fs", "module A\nlet x = 1\n", "fsharp"),
        ("fs", "#version 330\nvoid main() {}\n", "glsl"),
        ("fs", ": square dup * ;\n", "forth"),
        ("ts", "export const x: number = 1;\n", "typescript"),
        ("ts", '<?xml version="1.0"?>\n<!DOCTYPE TS>\n<TS version="2.1">\n</TS>\n', None),
        ("r", "f <- function(x) x\n", "r"),
        ("r", "REBOL [Title: {x}]\nprint 1\n", "rebol"),
        ("cls", "public with sharing class A { }\n", "apex"),
        ("cls", "\\NeedsTeXFormat{LaTeX2e}\n\\ProvidesClass{a}\n", "tex"),
        ("cls", 'VERSION 1.0 CLASS\nAttribute VB_Name = "A"\n', "vba"),
        ("sql", "select 1;\n", "sql"),
        ("sql", "create function f() returns int as $$ begin return 1; end $$ language plpgsql;\n", "plpgsql"),
        ("sql", "DECLARE @x INT;\nGO\n", "tsql"),
        ("inc", "<?php echo 1;\n", "php"),
        ("inc", "#pragma once\n#include <vector>\n", "cpp"),
        ("inc", "plain words\n", None),
    ],
)
def test_the_text_tells_languages_with_one_extension_apart(extension: str, content: str, spoken: str | None):
    assert language(f"a.{extension}", content) == spoken
