//! From a patched site to [`crate::calls::dispatch`] and back, and the one call whose child returns on another stack.
//! *Upper half*, on the application's stack, below its red zone.
//!
//! A trampoline arrives here with the system call's number in eax, its arguments in their registers, and the return
//! address in rcx. Everything but rax, rcx and r11 must leave as it came, vector registers included: glibc inlines
//! system calls into functions that keep values there.
#![allow(unsafe_code, reason = "register-level entry code")]

use core::arch::global_asm;

unsafe extern "C" {
    fn stillpoint_hook_entry();
}

/// Address that trampolines jump to.
pub(crate) fn address() -> usize {
    (stillpoint_hook_entry as *const ()).expose_provenance()
}

/// The saved argument registers, as the assembly below pushes them.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Regs {
    pub(crate) r9: usize,
    pub(crate) r8: usize,
    pub(crate) r10: usize,
    pub(crate) rdx: usize,
    pub(crate) rsi: usize,
    pub(crate) rdi: usize,
    pub(crate) ret: usize,
}

global_asm!(
    ".pushsection .text",
    ".macro SP_SAVE",
    "lea -128(%rsp), %rsp",
    "push %rcx; push %rdi; push %rsi; push %rdx; push %r10; push %r8; push %r9; push %rbp; push %rbx",
    "lea 16(%rsp), %rdi", // Regs starts at r9
    "mov %rsp, %rbx",
    "sub $272, %rsp; and $-16, %rsp",
    "movaps %xmm0, (%rsp); movaps %xmm1, 16(%rsp); movaps %xmm2, 32(%rsp); movaps %xmm3, 48(%rsp)",
    "movaps %xmm4, 64(%rsp); movaps %xmm5, 80(%rsp); movaps %xmm6, 96(%rsp); movaps %xmm7, 112(%rsp)",
    "movaps %xmm8, 128(%rsp); movaps %xmm9, 144(%rsp); movaps %xmm10, 160(%rsp); movaps %xmm11, 176(%rsp)",
    "movaps %xmm12, 192(%rsp); movaps %xmm13, 208(%rsp); movaps %xmm14, 224(%rsp); movaps %xmm15, 240(%rsp)",
    "cld",
    ".endm",
    ".macro SP_RESTORE",
    "movaps (%rsp), %xmm0; movaps 16(%rsp), %xmm1; movaps 32(%rsp), %xmm2; movaps 48(%rsp), %xmm3",
    "movaps 64(%rsp), %xmm4; movaps 80(%rsp), %xmm5; movaps 96(%rsp), %xmm6; movaps 112(%rsp), %xmm7",
    "movaps 128(%rsp), %xmm8; movaps 144(%rsp), %xmm9; movaps 160(%rsp), %xmm10; movaps 176(%rsp), %xmm11",
    "movaps 192(%rsp), %xmm12; movaps 208(%rsp), %xmm13; movaps 224(%rsp), %xmm14; movaps 240(%rsp), %xmm15",
    "mov %rbx, %rsp",
    "pop %rbx; pop %rbp; pop %r9; pop %r8; pop %r10; pop %rdx; pop %rsi; pop %rdi; pop %rcx",
    "lea 128(%rsp), %rsp",
    ".endm",
    ".globl stillpoint_hook_entry",
    ".hidden stillpoint_hook_entry",
    ".type stillpoint_hook_entry,@function",
    "stillpoint_hook_entry:",
    "cmp $56, %eax",
    "je 2f",
    "1:",
    "SP_SAVE",
    "mov %eax, %esi",
    "call {dispatch}",
    "SP_RESTORE",
    "jmp *%rcx",
    // clone: with a stack of its own the child must leave by a return address that lies on that stack.
    "2: test %rsi, %rsi",
    "jz 1b",
    "SP_SAVE",
    "call {prepare}", // rax: the new thread's record, or 0 for a process
    "SP_RESTORE",
    "mov %rcx, -8(%rsi)",
    "mov %rax, -16(%rsi)",
    "lea -128(%rsp), %rsp",
    "push %rcx",
    "push %rax",
    "lea -16(%rsi), %rsi",
    "mov $56, %eax",
    "syscall",
    "test %rax, %rax",
    "jz 3f",
    "lea 16(%rsi), %rsi",
    "pop %r11", // the record
    "pop %rcx",
    "lea 128(%rsp), %rsp",
    "push %rax", // below the red zone would be safer; clone's caller has no red zone data (it is assembly)
    "test %r11, %r11",
    "jz 4f",
    "push %r11",
    "SP_SAVE",
    "mov (16+56+128)(%rbx), %rdi", // the record pushed above
    "mov (16+56+128+8)(%rbx), %rsi", // the thread id
    "call {done}",
    "SP_RESTORE",
    "pop %r11",
    "4: pop %rax",
    "jmp *%rcx",
    "3: pop %rdi",
    "test %rdi, %rdi",
    "jz 5f",
    "sub $8, %rsp",
    "call {started}",
    "add $8, %rsp",
    "5: pop %rcx",
    "xor %eax, %eax",
    "jmp *%rcx",
    ".popsection",
    dispatch = sym crate::calls::dispatch,
    prepare = sym crate::ids::clone_prepare,
    done = sym crate::ids::clone_done,
    started = sym crate::ids::clone_started,
    options(att_syntax),
);
