"""A language's name as people write it, for prose. Code fences keep the tag. (no torch)"""

from __future__ import annotations

import re

SPOKEN = {
    "python": "Python", "py": "Python", "rust": "Rust", "rs": "Rust", "go": "Go", "golang": "Go",
    "javascript": "JavaScript", "js": "JavaScript", "jsx": "JavaScript", "typescript": "TypeScript",
    "ts": "TypeScript", "tsx": "TypeScript", "java": "Java", "kotlin": "Kotlin", "kt": "Kotlin", "scala": "Scala",
    "c": "C", "cpp": "C++", "c++": "C++", "cxx": "C++", "cplusplus": "C++", "csharp": "C#", "c#": "C#", "cs": "C#",
    "fsharp": "F#", "f#": "F#", "objectivec": "Objective-C", "objc": "Objective-C",
    "objectivec++": "Objective-C++", "objectivecpp": "Objective-C++", "objc++": "Objective-C++", "swift": "Swift",
    "ruby": "Ruby", "rb": "Ruby", "php": "PHP", "perl": "Perl", "lua": "Lua", "luau": "Luau", "r": "R",
    "julia": "Julia", "matlab": "MATLAB", "haskell": "Haskell", "ocaml": "OCaml", "elixir": "Elixir",
    "erlang": "Erlang", "clojure": "Clojure", "dart": "Dart", "zig": "Zig", "nim": "Nim", "bash": "Bash",
    "sh": "shell", "shell": "shell", "zsh": "Zsh", "fish": "fish", "powershell": "PowerShell", "batch": "batch",
    "batchfile": "batch", "sql": "SQL", "plsql": "PL/SQL", "plpgsql": "PL/pgSQL", "tsql": "T-SQL", "html": "HTML",
    "css": "CSS", "scss": "SCSS", "sass": "Sass", "less": "Less", "vue": "Vue", "svelte": "Svelte",
    "protobuf": "Protocol Buffers", "protocolbuffer": "Protocol Buffers", "graphql": "GraphQL", "cmake": "CMake",
    "makefile": "Makefile", "dockerfile": "Dockerfile", "terraform": "Terraform", "hcl": "HCL", "nix": "Nix",
    "assembly": "assembly", "asm": "assembly", "llvm": "LLVM IR", "webassembly": "WebAssembly",
    "wasm": "WebAssembly", "json": "JSON", "jsonc": "JSON", "yaml": "YAML", "yml": "YAML", "toml": "TOML",
    "ini": "INI", "xml": "XML", "csv": "CSV", "tex": "TeX", "latex": "LaTeX", "markdown": "Markdown",
    "md": "Markdown", "rst": "reStructuredText", "restructuredtext": "reStructuredText", "fortran": "Fortran",
    "cobol": "COBOL", "pascal": "Pascal", "delphi": "Delphi", "ada": "Ada", "lisp": "Lisp",
    "commonlisp": "Common Lisp", "emacslisp": "Emacs Lisp", "elisp": "Emacs Lisp", "scheme": "Scheme",
    "racket": "Racket", "prolog": "Prolog", "coffeescript": "CoffeeScript", "livescript": "LiveScript",
    "purescript": "PureScript", "rescript": "ReScript", "reasonml": "ReasonML", "actionscript": "ActionScript",
    "applescript": "AppleScript", "vb": "Visual Basic", "vba": "VBA", "vbnet": "Visual Basic .NET",
    "visualbasic": "Visual Basic", "visualbasicnet": "Visual Basic .NET", "verilog": "Verilog",
    "systemverilog": "SystemVerilog", "vhdl": "VHDL", "cuda": "CUDA", "opencl": "OpenCL", "glsl": "GLSL",
    "hlsl": "HLSL", "wgsl": "WGSL", "gdscript": "GDScript", "jupyter": "Jupyter", "jupyternotebook": "Jupyter",
    "vim": "Vim script", "vimscript": "Vim script", "viml": "Vim script", "awk": "AWK", "sed": "sed",
    "d": "D", "v": "V", "qml": "QML", "sas": "SAS", "abap": "ABAP", "apl": "APL", "tcl": "Tcl", "idl": "IDL",
    "cfml": "CFML", "asp": "ASP", "aspnet": "ASP.NET", "jsp": "JSP", "text": "text", "txt": "text",
    "plaintext": "text", "diff": "diff", "nsis": "NSIS", "jq": "jq", "yara": "YARA", "tla": "TLA+", "smt": "SMT-LIB",
    "m4": "M4", "mlir": "MLIR", "openscad": "OpenSCAD", "autohotkey": "AutoHotkey", "autoit": "AutoIt",
    "vbscript": "VBScript", "ejs": "EJS", "antlr": "ANTLR", "bibtex": "BibTeX", "webidl": "WebIDL", "xslt": "XSLT",
    "xquery": "XQuery", "sourcepawn": "SourcePawn", "supercollider": "SuperCollider", "postcss": "PostCSS",
    "sml": "Standard ML", "lean4": "Lean 4", "codeql": "CodeQL", "robotframework": "Robot Framework",
    "gams": "GAMS", "ispc": "ISPC", "jcl": "JCL", "rpgle": "RPGLE", "dtrace": "DTrace", "netlogo": "NetLogo",
    "brightscript": "BrightScript", "typespec": "TypeSpec", "minizinc": "MiniZinc", "mdx": "MDX", "fstar": "F*",
    "modula2": "Modula-2", "modula3": "Modula-3", "vb6": "Visual Basic 6", "shaderlab": "ShaderLab",
}  # fmt: skip
"""By tag in lower case, without separators."""


def spoken(language: str) -> str:
    """Return the name of a row's language for prose: C++ for `cpp`.

    An unknown name stays as it is if it has a capital, a digit or a sign. Otherwise its words get capitals.
    """
    tag = language.strip()
    known = SPOKEN.get(re.sub(r"[\s._-]", "", tag.lower()))
    if known is not None:
        return known
    words = re.split(r"[\s_-]+", tag)
    plain = tag.islower() and all(word.isalpha() for word in words)
    return " ".join(word.capitalize() for word in words) if plain else tag
