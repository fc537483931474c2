//! `check --as-run`: what `run` needs from this machine beside a good configuration.

use std::path::{Path, PathBuf};

use portcullis::linux::probe::probe;
use portcullis::linux::process;
use portcullis::settings::Settings;

use super::doctor::machine;
use super::doctor::ports;
use super::doctor::row::Row;

/// Tries everything that makes `run` fail. It leaves nothing behind.
pub fn rows(settings: &Settings) -> Vec<Row> {
    let probed = probe();
    let usable = probed.is_ok();
    let mut rows = vec![
        machine::io_uring(&probed),
        machine::seccomp(&machine::read, usable),
        machine::descriptors(
            process::raise_descriptor_limit(),
            Some(settings),
            probed.as_ref().ok(),
        ),
    ];
    let ports: Vec<u16> =
        ports::addresses(settings).iter().map(|(_, address)| address.port()).collect();
    rows.push(machine::low_ports(&machine::read, &ports));
    rows.extend(ports::rows(settings));
    rows.extend(folders(settings).into_iter().map(|(key, path)| folder(key, &path)));
    rows.push(user(process::is_root()));
    rows
}

fn folders(settings: &Settings) -> Vec<(&'static str, PathBuf)> {
    let gateway = &settings.gateway;
    let files = [
        ("gateway.close_log", gateway.close_log.as_ref()),
        ("gateway.revocations_file", gateway.revocations_file.as_ref()),
    ];
    files.into_iter().filter_map(|(key, path)| Some((key, path?.clone()))).collect()
}

/// Whether this user may write the file, or make it. A file that is there is opened to append,
/// which changes nothing; beside it a temporary file is made, as the gateway does when it
/// replaces the revocations.
fn folder(key: &'static str, path: &Path) -> Row {
    const CHECK: &str = "folder";
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        let finding = format!("{key}: the folder {} does not exist", folder.display());
        let remedy = format!("create it for the gateway's user, or change {key}");
        return Row::fail(CHECK, finding, remedy);
    }
    let opened = match path.exists() {
        true => std::fs::OpenOptions::new().append(true).open(path).map(drop),
        false => Ok(()),
    };
    let trial = folder.join(format!(".portcullis-check-{}", std::process::id()));
    let made = || {
        let file = std::fs::OpenOptions::new().write(true).create_new(true).open(&trial)?;
        drop(file);
        std::fs::remove_file(&trial)
    };
    match opened.and_then(|()| made()) {
        Ok(()) => Row::ok(CHECK, format!("{key}: {} can be written", path.display())),
        Err(error) => {
            let finding = format!("{key}: {} cannot be written: {error}", path.display());
            let remedy = "give the folder and the file to the gateway's user; under systemd, \
                          StateDirectory= and LogsDirectory= name the folders that it may write";
            Row::fail(CHECK, finding, remedy)
        }
    }
}

/// Root may read and write whatever the gateway's own user may not.
fn user(is_root: bool) -> Row {
    const CHECK: &str = "user";
    match is_root {
        false => Row::ok(CHECK, "this user can read every file that the configuration names"),
        true => Row::warn(
            CHECK,
            "this was tried as root, who may read and write everything",
            "try it as the gateway's user: runuser -u portcullis -- portcullis check --as-run",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::doctor::row::Status;
    use super::*;

    #[test]
    fn folders_that_can_be_written_and_others() {
        let root = tempfile::tempdir().unwrap();
        let here = root.path().join("closes.log");
        assert_eq!(folder("gateway.close_log", &here).status, Status::Ok);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0, "something was left");
        std::fs::write(&here, "kept\n").unwrap();
        assert_eq!(folder("gateway.close_log", &here).status, Status::Ok);
        assert_eq!(std::fs::read_to_string(&here).unwrap(), "kept\n");
        let missing = folder("gateway.close_log", &root.path().join("none/closes.log"));
        assert!(missing.finding.contains("none does not exist"), "{missing:?}");
        // A folder cannot be opened as a file, even by root.
        let taken = folder("gateway.revocations_file", root.path());
        assert_eq!(taken.status, Status::Fail, "{taken:?}");
        assert!(taken.remedy.contains("StateDirectory"), "{taken:?}");
    }

    #[test]
    fn root_is_told_to_try_as_the_gateways_user() {
        assert_eq!(user(false).status, Status::Ok);
        assert!(user(true).remedy.contains("runuser"));
    }
}
