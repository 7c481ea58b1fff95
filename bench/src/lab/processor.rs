//! What processes use, as `/proc` tells it. Elsewhere than on Linux everything is 0.

use std::fs;

/// Ticks a second in `/proc`, on every Linux.
const TICKS: f64 = 100.0;

/// The processor time that a process has used, in seconds.
pub fn seconds(pid: u32) -> f64 {
    Stat::read(pid).map_or(0.0, |stat| stat.own)
}

/// The processor time of a process with its children, those that have ended included.
pub fn family_seconds(parent: u32) -> f64 {
    let Some(stat) = Stat::read(parent) else { return 0.0 };
    let children = all().filter_map(Stat::read).filter(|child| child.parent == parent);
    stat.own + stat.ended_children + children.map(|child| child.own).sum::<f64>()
}

/// The memory of a process that is in use now, and the most that was since [`forget_peak`], in MiB.
pub fn resident_mebibytes(pid: u32) -> Option<(f64, f64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()? / 1024.0)
    };
    Some((field("VmRSS:")?, field("VmHWM:")?))
}

/// Makes the system forget the most memory that a process has used.
pub fn forget_peak(pid: u32) {
    // Where this is not allowed, the peak is that of the whole life of the process, which is not less.
    let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

fn all() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

struct Stat {
    parent: u32,
    own: f64,
    ended_children: f64,
}

impl Stat {
    fn read(pid: u32) -> Option<Stat> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may hold anything.
        let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_whitespace().collect();
        let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
        Some(Stat {
            parent: fields.get(1)?.parse().ok()?,
            own: (ticks(11)? + ticks(12)?) / TICKS,
            ended_children: (ticks(13)? + ticks(14)?) / TICKS,
        })
    }
}
