#!/usr/bin/env python3
"""Holds a JSON text against the fields that docs/csvctl.md promises for a command.

Usage: json_fields.py DOCS COMMAND < OUTPUT      such as: json_fields.py docs/csvctl.md status

The page has a heading with `COMMAND --json` and an indented block below it: names apart by commas or lines, {…} around what
an object holds, [] behind a name that is a list. Two spaces begin a remark; a line whose remark says "null" has fields that
may be null, and one whose remark says "as of `OTHER COMMAND --json`" has those of that. A name with ? may be missing, and * among the
names of an object stands for any others. A field that is missing, or that the page does not know, is an error."""
import json
import re
import sys


def block_of(page, command):
    heading = re.compile(r"^#+ .*`(?:csvctl )?" + re.escape(command) + r" --json`")
    lines, found = [], False
    for line in page.splitlines():
        if line.startswith("#"):
            found = bool(heading.match(line))
        elif found and line.startswith("    "):
            lines.append(line[4:])
    if not lines:
        sys.exit(f"the page has no fields of '{command} --json'")
    return lines


def tokens_of(page, command):
    for line in block_of(page, command):
        parts = re.split(r"(?<=\S)  +", line.strip(), maxsplit=1)
        nullable = len(parts) > 1 and "null" in parts[1]
        for token in re.findall(r"[{}*?]|\[\]|[A-Za-z_0-9]+", parts[0]):
            yield token, nullable
        other = re.search(r"as of `(.+) --json`", parts[-1])
        if other:
            yield "{", False
            yield from tokens_of(page, other[1])
            yield "}", False
        if len(parts) > 1 and parts[1].rstrip().endswith("{"):
            sys.exit(f"a brace in a remark: {line}")


def fields_of(tokens):
    """{name: (is_list, fields or None, nullable)}, with "*" and "NAME?" as they are"""
    fields, last = {}, None
    while tokens:
        token, nullable = tokens.pop(0)
        if token == "}":
            return fields
        if token == "{":
            inner = fields_of(tokens)
            fields[last] = (fields[last][0], inner, fields[last][2])
        elif token == "[]":
            fields[last] = (True, *fields[last][1:])
        elif token == "?":
            fields[last + "?"] = fields.pop(last)
            last += "?"
        else:
            last = token
            fields[last] = (False, None, nullable)
    return fields


def compare(value, fields, where, problems, seen):
    for name in value:
        if name not in fields and name + "?" not in fields and "*" not in fields:
            problems.append(f"{where}{name} is not documented")
    for name, (is_list, inner, nullable) in fields.items():
        if name == "*" or (name.endswith("?") and name[:-1] not in value):
            continue
        name = name.rstrip("?")
        path = where + name
        if name not in value:
            problems.append(f"{path} is missing")
            continue
        found = value[name]
        if found is None:
            if not nullable:
                problems.append(f"{path} is null, which is not documented")
            continue
        seen.add(path)
        if is_list != isinstance(found, list):
            problems.append(f"{path} is {'no' if is_list else 'a'} list")
            continue
        for each in found if is_list else [found]:
            if (inner is not None) != isinstance(each, dict):
                problems.append(f"{path} holds {type(each).__name__}")
            elif inner is not None:
                compare(each, inner, path + ".", problems, seen)


def main():
    page, command = sys.argv[1], sys.argv[2]
    with open(page, encoding="utf-8") as text:
        fields = fields_of(list(tokens_of(text.read(), command)))
    value, problems, seen = json.load(sys.stdin), [], set()
    compare(value, fields, "", problems, seen)
    for problem in problems:
        print(f"{command} --json: {problem}")
    if not seen:
        problems.append("nothing was compared")
    print(f"{command} --json: {len(seen)} fields as documented" if not problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
