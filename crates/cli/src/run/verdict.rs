//! A process's verdict on itself, for the user: what happened, how things stood, what to do.

use hmm::control::{RunConfig, Verdict, VerdictKind};
use hmm::spec::ByteSize;

use crate::pages::pages;

/// Several lines, each to be printed with the command's name in front.
pub(super) fn lines(verdict: &Verdict, name: &str, config: &RunConfig) -> Vec<String> {
    let process = format!("{name}[{}]", verdict.pid);
    let mut lines = vec![match verdict.kind {
        VerdictKind::DeviceFull => format!("{process} was ended: there is no room left for its memory"),
        VerdictKind::DeviceLost => {
            format!(
                "{process}: a device failed: touching what it held raises SIGBUS, and nothing more leaves for it"
            )
        }
        VerdictKind::AgentFailed => format!("{process} was not started: its memory could not be managed"),
        VerdictKind::KernelError => {
            format!("{process} was ended: the kernel refused what hmm cannot do without")
        }
        VerdictKind::NoMemory => {
            format!("{process} was ended: there is no room for what hmm keeps of its memory")
        }
        VerdictKind::Defect => format!("{process} was ended: hmm failed in it"),
        VerdictKind::Unknown => format!("{process} ended while it was saying why"),
    }];
    lines.extend(reason(verdict));
    lines.push(figures(verdict, config));
    lines.extend(advice(verdict.kind, config));
    lines
}

fn reason(verdict: &Verdict) -> Option<String> {
    let text = verdict.text.as_str();
    let errno = (verdict.errno != 0).then(|| std::io::Error::from_raw_os_error(verdict.errno).to_string());
    match (text.is_empty(), errno) {
        (true, None) => None,
        (true, Some(errno)) => Some(format!("  {errno}")),
        (false, None) => Some(format!("  {text}")),
        (false, Some(errno)) => Some(format!("  {text}: {errno}")),
    }
}

fn figures(verdict: &Verdict, config: &RunConfig) -> String {
    let figures = &verdict.figures;
    format!(
        "  resident {} of a budget of {}; away {}, in {} of at most {} on {}",
        pages(figures.charged_pages),
        pages(config.ram_pages),
        pages(figures.away_pages),
        ByteSize(figures.device_bytes),
        ByteSize(figures.device_capacity_bytes),
        super::summary::device_names(config),
    )
}

fn advice(kind: VerdictKind, config: &RunConfig) -> Option<String> {
    match kind {
        VerdictKind::DeviceFull => {
            let device = config.devices.first().map_or("lz4", |device| device.name());
            Some(format!(
                "  give it more RAM (--ram), a larger device (--device {device}:cap=SIZE), one more \
                 (--device file:path=DIRECTORY), or let the budget grow (--on-full grow)"
            ))
        }
        VerdictKind::AgentFailed | VerdictKind::KernelError => {
            Some("  `hmm doctor` says what works here and what does not".to_owned())
        }
        VerdictKind::DeviceLost => Some(
            "  what is on other devices is not concerned; a program whose memory cannot leave any more is ended when its \
             budget is used up"
                .to_owned(),
        ),
        VerdictKind::Defect => Some("  please report it, with what was run and the lines above".to_owned()),
        VerdictKind::NoMemory | VerdictKind::Unknown => None,
    }
}

#[cfg(test)]
mod tests {
    use hmm::control::{Figures, OnFull, Text};
    use hmm::spec::Backing;

    use super::*;

    fn config() -> RunConfig {
        RunConfig {
            ram_pages: 1 << 17,
            per_process: false,
            on_full: OnFull::Kill,
            devices: vec![Backing::Lz4 { capacity_bytes: 1 << 30 }.into()],
            dmirror: false,
            policy: hmm::PolicyName::default(),
        }
    }

    #[test]
    fn a_full_device_is_told_with_figures_and_advice() {
        let figures = Figures {
            charged_pages: 1 << 17,
            away_pages: 1 << 19,
            device_bytes: 1 << 30,
            device_capacity_bytes: 1 << 30,
        };
        let text = Text::format(format_args!("lz4 refused page 17"));
        let verdict = Verdict { kind: VerdictKind::DeviceFull, pid: 7, errno: 0, figures, text };
        let text = lines(&verdict, "sort", &config()).join("\n");
        assert_eq!(
            text,
            "sort[7] was ended: there is no room left for its memory\n\
             \x20 lz4 refused page 17\n\
             \x20 resident 512 MiB of a budget of 512 MiB; away 2 GiB, in 1 GiB of at most 1 GiB on lz4\n\
             \x20 give it more RAM (--ram), a larger device (--device lz4:cap=SIZE), one more \
             (--device file:path=DIRECTORY), or let the budget grow (--on-full grow)"
        );
    }

    #[test]
    fn the_kernels_word_is_told() {
        let verdict = Verdict {
            kind: VerdictKind::AgentFailed,
            pid: 7,
            errno: 1,
            figures: Figures::default(),
            text: Text::format(format_args!("cannot create a userfaultfd")),
        };
        let text = lines(&verdict, "sort", &config()).join("\n");
        assert!(text.contains("cannot create a userfaultfd: Operation not permitted"), "{text}");
        assert!(text.contains("hmm doctor"), "{text}");
    }
}
