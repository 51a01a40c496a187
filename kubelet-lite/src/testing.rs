//! What tests share: an image without a registry.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::runtime::docker::DEFAULT_SOCKET;

/// Imports a static busybox as an image, once; `None` where no Docker answers or no busybox is installed (then the tests that
/// need them have nothing to say).
pub async fn docker_image() -> Option<String> {
    const NAME: &str = "scaleup-test/busybox:1";
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|p| Path::new(p).exists())?;
    if !Path::new(DEFAULT_SOCKET).exists() {
        return None;
    }
    tokio::task::spawn_blocking(move || {
        let quiet = |command: &mut Command| {
            command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
        };
        if quiet(Command::new("docker").args(["image", "inspect", NAME])) {
            return Some(NAME.to_owned());
        }
        let dir = tempfile::tempdir().ok()?;
        let bin = dir.path().join("bin");
        std::fs::create_dir_all(&bin).ok()?;
        std::fs::create_dir_all(dir.path().join("tmp")).ok()?;
        std::fs::copy(busybox, bin.join("busybox")).ok()?;
        std::os::unix::fs::symlink("busybox", bin.join("sh")).ok()?;
        for applet in ["sleep", "cat", "echo", "wget", "httpd", "nc", "stat", "hostname", "touch", "env", "id"] {
            std::os::unix::fs::symlink("busybox", bin.join(applet)).ok()?;
        }
        let mut tar =
            Command::new("tar").arg("-C").arg(dir.path()).args(["-c", "."]).stdout(Stdio::piped()).spawn().ok()?;
        let done =
            quiet(Command::new("docker").args(["import", "-c", "CMD [\"sh\"]", "-", NAME]).stdin(tar.stdout.take()?));
        tar.wait().ok()?;
        done.then(|| NAME.to_owned())
    })
    .await
    .ok()?
}
