"""What MODULE.bazel would download, made of what is on this machine."""

def _stand_in_impl(context):
    context.file("BUILD", 'filegroup(name = "coverage_report_generator", visibility = ["//visibility:public"])\n')
    if context.attr.package:
        context.file(context.attr.package + "/BUILD")
        context.file(
            context.attr.package + "/defs.bzl",
            "".join(["{0} = native.{0}\n".format(rule) for rule in context.attr.rules]),
        )

stand_in = repository_rule(
    implementation = _stand_in_impl,
    doc = "A repository of rules whose rules are those built into Bazel 4.",
    attrs = {
        "package": attr.string(mandatory = True),
        "rules": attr.string_list(mandatory = True),
    },
)

def _installed_packages_impl(context):
    script = context.path(Label("//:pypi.py"))
    result = context.execute([context.os.environ["STAND_IN_PYTHON"], script])
    if result.return_code:
        fail(result.stderr)

installed_packages = repository_rule(
    implementation = _installed_packages_impl,
    doc = "A repository @pypi of the packages that are installed beside $STAND_IN_PYTHON.",
    environ = ["STAND_IN_PYTHON"],
    local = True,
)
