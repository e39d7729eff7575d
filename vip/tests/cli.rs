//! The command line as people and scripts use it: the real program.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::path::Path;
use std::process::{Command, Output, Stdio};

const FINE: &str = "node = \"lb1\"\n[[vips]]\ninterface = \"eth0\"\nrouter_id = 51\n\
    priority = { lb1 = 150, lb2 = 100 }\naddresses = [\"192.168.60.110/24\"]\n";

fn pointsman_vip(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pointsman-vip"));
    command.args(arguments).env_remove("POINTSMAN_CONFIG").stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn check(dir: &Path, file: &str) -> (Option<i32>, String, String) {
    let path = dir.join("pointsman.toml");
    std::fs::write(&path, file).unwrap();
    let output = pointsman_vip(&["check", "--config", path.to_str().unwrap()]);
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn check_says_what_the_file_means_here_or_everything_that_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let (code, out, err) = check(dir.path(), FINE);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out.contains("the configuration is fine: 1 virtual router, node lb1\n"), "{out}");
    assert!(
        out.contains("  eth0-51: 192.168.60.110/24 on eth0, router_id 51, VRRP version 3, priority 150"),
        "{out}"
    );
    assert!(out.contains("no peers: VRRP's timers alone decide"), "{out}");

    let (code, out, err) = check(dir.path(), &FINE.replace("51", "0").replace("/24", ""));
    assert_eq!((code, out.as_str()), (Some(78), ""));
    assert!(err.contains("`router_id` cannot be `0`") && err.ends_with("2 errors\n"), "{err}");

    let (code, _, err) = check(dir.path(), "node = \"lb1\"\n[vrrp]\n");
    assert!(code == Some(78) && err.contains("there is no [[vips]]"), "{err}");
}

#[test]
fn nothing_is_run_without_a_virtual_router() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pointsman.toml");
    std::fs::write(&path, "node = \"lb1\"\n[vrrp]\n").unwrap();
    for arguments in [&["run"][..], &["worker", "--link", "77"]] {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--config", path.to_str().unwrap()]);
        assert_eq!(pointsman_vip(&arguments).status.code(), Some(78), "{arguments:?}");
    }
}

#[test]
fn who_does_not_answer_is_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("pointsman.toml"), format!("{FINE}[vrrp]\nsocket = \"none.sock\"\n"))
        .unwrap();
    let file = dir.path().join("pointsman.toml");
    for arguments in [&["status"][..], &["yield"], &["resume", "eth0-51"]] {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--config", file.to_str().unwrap()]);
        let output = pointsman_vip(&arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(69), "{said}");
        assert!(said.contains("none.sock: is it running? (`systemctl status pointsman-vip`"), "{said}");
    }
}

#[test]
fn help_man_and_completions_are_complete() {
    let help = text(&pointsman_vip(&["--help"]).stdout);
    for word in
        ["run", "check", "status", "yield", "resume", "completions", "man", "Examples:", "Exit codes:"]
    {
        assert!(help.contains(word), "{word}");
    }
    assert!(!help.contains("worker"), "it is for the guard alone");
    assert!(text(&pointsman_vip(&["completions", "bash"]).stdout).contains("pointsman-vip"));
    let dir = tempfile::tempdir().unwrap();
    assert!(pointsman_vip(&["man", "--out", dir.path().to_str().unwrap()]).status.success());
    assert!(dir.path().join("pointsman-vip-yield.1").exists());
    assert_eq!(pointsman_vip(&["nonsense"]).status.code(), Some(2));
}
