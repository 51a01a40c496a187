//! The program that holds a pod's address, and the image around it.
//!
//! No registry is asked: an offline machine must be able to run pods. The program is 248 bytes, made here byte by byte, and
//! does what upstream's `pause` does: waits for SIGTERM or SIGINT and exits, leaves no zombies when it is the init of a
//! shared process namespace, and nothing else. It never allocates, opens or writes anything.

/// Repository of the image.
pub const REPOSITORY: &str = "scaleup/pause";
/// Tag; changes with the program.
pub const TAG: &str = "1";

/// Where the program is loaded.
const BASE: u64 = 0x40_0000;
/// ELF header and one program header.
const HEADERS_LEN: u64 = 64 + 56;

/// x86-64 instructions. As PID 1 a process receives only signals that it handles or blocks, so the two are blocked and
/// waited for; ignored SIGCHLD makes the kernel reap adopted children.
#[rustfmt::skip]
const CODE_X86_64: &[u8] = &[
    // 0: rt_sigaction(SIGCHLD = 17, &act, NULL, 8)
    0xb8, 13, 0, 0, 0,                          // mov eax, 13
    0xbf, 17, 0, 0, 0,                          // mov edi, 17
    0x48, 0x8d, 0x35, 0x47, 0, 0, 0,            // lea rsi, [rip + act]: 17 + 0x47 = 88
    0x31, 0xd2,                                 // xor edx, edx
    0x41, 0xba, 8, 0, 0, 0,                     // mov r10d, 8
    0x0f, 0x05,                                 // syscall
    // 27: rt_sigprocmask(SIG_BLOCK = 0, &set, NULL, 8)
    0xb8, 14, 0, 0, 0,                          // mov eax, 14
    0x31, 0xff,                                 // xor edi, edi
    0x48, 0x8d, 0x35, 0x4f, 0, 0, 0,            // lea rsi, [rip + set]: 41 + 0x4f = 120
    0x31, 0xd2,                                 // xor edx, edx
    0x41, 0xba, 8, 0, 0, 0,                     // mov r10d, 8
    0x0f, 0x05,                                 // syscall
    // 51: rt_sigtimedwait(&set, NULL, NULL, 8)
    0xb8, 128, 0, 0, 0,                         // mov eax, 128
    0x48, 0x8d, 0x3d, 0x39, 0, 0, 0,            // lea rdi, [rip + set]: 63 + 0x39 = 120
    0x31, 0xf6,                                 // xor esi, esi
    0x31, 0xd2,                                 // xor edx, edx
    0x41, 0xba, 8, 0, 0, 0,                     // mov r10d, 8
    0x0f, 0x05,                                 // syscall
    0x85, 0xc0,                                 // test eax, eax
    0x78, 0xe4,                                 // js 51: interrupted, wait again
    // 79: exit_group(0)
    0xb8, 231, 0, 0, 0,                         // mov eax, 231
    0x31, 0xff,                                 // xor edi, edi
    0x0f, 0x05,                                 // syscall
    // 88: act: handler SIG_IGN, flags, restorer, mask
    1, 0, 0, 0, 0, 0, 0, 0,  0, 0, 0, 0, 0, 0, 0, 0,  0, 0, 0, 0, 0, 0, 0, 0,  0, 0, 0, 0, 0, 0, 0, 0,
    // 120: set: bits of SIGINT (2) and SIGTERM (15)
    0x02, 0x40, 0, 0, 0, 0, 0, 0,
];

/// The ELF file for this machine, if its architecture is one we have a program for.
pub fn program() -> Option<Vec<u8>> {
    (std::env::consts::ARCH == "x86_64").then(|| elf(CODE_X86_64, 62))
}

/// A static ELF64 executable of one read-and-execute segment. `machine` is `e_machine`.
fn elf(code: &[u8], machine: u16) -> Vec<u8> {
    let total = HEADERS_LEN + code.len() as u64;
    let mut out = Vec::with_capacity(code.len() + 120);
    // e_ident: magic, 64-bit, little endian, version 1, System V.
    out.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    out.extend(2u16.to_le_bytes()); // e_type: executable
    out.extend(machine.to_le_bytes());
    out.extend(1u32.to_le_bytes()); // e_version
    out.extend((BASE + HEADERS_LEN).to_le_bytes()); // e_entry
    out.extend(64u64.to_le_bytes()); // e_phoff
    out.extend(0u64.to_le_bytes()); // e_shoff
    out.extend(0u32.to_le_bytes()); // e_flags
    out.extend([64u16, 56, 1, 64, 0, 0].into_iter().flat_map(u16::to_le_bytes)); // header sizes and counts
    out.extend(1u32.to_le_bytes()); // p_type: load
    out.extend(5u32.to_le_bytes()); // p_flags: read, execute
    out.extend([0, BASE, BASE, total, total, 0x1000].into_iter().flat_map(u64::to_le_bytes));
    out.extend(code);
    out
}

/// A tar archive (POSIX ustar) whose only file is `/pause`, mode 0755.
pub fn tar(program: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 512;
    let mut header = [0u8; BLOCK];
    let mut field = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    field(0, "pause");
    field(100, "0000755\0");
    field(108, "0000000\0");
    field(116, "0000000\0");
    field(124, &format!("{:011o}\0", program.len()));
    field(136, "00000000000\0");
    field(148, "        "); // the checksum counts itself as spaces
    field(156, "0");
    field(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut out = header.to_vec();
    out.extend(program);
    out.resize(out.len().next_multiple_of(BLOCK) + 2 * BLOCK, 0);
    out
}

#[cfg(all(test, target_os = "linux", target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn the_program_waits_and_exits_on_sigterm() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pause");
        std::fs::write(&path, program().unwrap()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = std::process::Command::new(&path).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(child.try_wait().unwrap().is_none(), "must wait");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }

    #[test]
    fn the_archive_is_padded_to_blocks() {
        let archive = tar(&program().unwrap());
        assert_eq!(archive.len(), 512 * 4);
        assert_eq!(&archive[257..262], b"ustar");
    }
}
