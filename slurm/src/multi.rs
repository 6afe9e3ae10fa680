//! The file of `srun --multi-prog`: puts `stillpoint-task` before the program of each line. Pure. *In srun.*
//!
//! What a reader would get wrong: up to Slurm 23.02 slurmstepd cuts each task's line out of this text before any hook of a
//! plugin runs, and hands out no way to change the result. So srun changes the text before it sends it. The grammar is
//! that of `multi_prog_get_argv` in slurmstepd: whole-line comments, a backslash at the end joins lines, a backslash
//! before a character takes its meaning away.

/// A path as a word of such a file.
pub(crate) fn word(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c.is_whitespace() || ['\\', '\'', '%'].contains(&c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// The text with `task` before each program.
pub(crate) fn wrap(text: &str, task: &str) -> String {
    let task = word(task);
    let mut out = String::with_capacity(text.len() * 2);
    let mut continued = false;
    for line in text.split_inclusive('\n') {
        let body = line.trim_end_matches('\n');
        let start = body.trim_start();
        let goes_on = body.ends_with('\\');
        let ranks = start.find(char::is_whitespace);
        match ranks {
            Some(end) if !continued && !start.starts_with('#') => {
                let (ranks, program) = start.split_at(end);
                out.push_str(ranks);
                out.push(' ');
                out.push_str(&task);
                out.push(' ');
                out.push_str(program.trim_start());
                out.push_str(&line[body.len()..]);
            }
            _ => out.push_str(line),
        }
        // slurmstepd does not see empty lines at all.
        continued = if body.is_empty() { continued } else { goes_on };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_program_gets_the_task_in_front() {
        let text = "# a comment\n\n0-1   ./a  %t 'x y'\n  2,3\tsh -c \\\n   'echo # 1' \\\n 5\n* ./c";
        let want =
            "# a comment\n\n0-1 /p/t ./a  %t 'x y'\n2,3 /p/t sh -c \\\n   'echo # 1' \\\n 5\n* /p/t ./c";
        assert_eq!(wrap(text, "/p/t"), want);
    }

    #[test]
    fn lines_without_a_program_are_left_for_slurm_to_refuse() {
        assert_eq!(wrap("0\n", "/p/t"), "0\n");
        assert_eq!(wrap("", "/p/t"), "");
    }

    #[test]
    fn a_path_stays_one_word() {
        assert_eq!(word("/a b/50%/it's"), "/a\\ b/50\\%/it\\'s");
    }
}
