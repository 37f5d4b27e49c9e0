;; Writes the file that its first argument names, below the root. The exit status is the WASI error of opening it.
(module
  (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 1)

  ;; 0: a vector, 8: how much it was, 12: the open file; pointers from 64 on, text from 1024, data from 8192.
  (func (export "_start")
    (local $path i32)
    (local $length i32)
    (local $error i32)
    (drop (call $args_get (i32.const 64) (i32.const 1024)))
    (local.set $path (i32.load (i32.const 68)))
    (block $measured
      (loop $next
        (br_if $measured (i32.eqz (i32.load8_u (i32.add (local.get $path) (local.get $length)))))
        (local.set $length (i32.add (local.get $length) (i32.const 1)))
        (br $next)))
    ;; Descriptor 3 is the first directory that was opened beforehand: the root. 1: symbolic links are followed;
    ;; the right, 2, is that to read.
    (local.set $error
      (call $path_open (i32.const 3) (i32.const 1) (local.get $path) (local.get $length)
        (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 12)))
    (if (local.get $error) (then (call $proc_exit (local.get $error))))
    (block $end
      (loop $next
        (i32.store (i32.const 0) (i32.const 8192))
        (i32.store (i32.const 4) (i32.const 4096))
        (br_if $end (call $fd_read (i32.load (i32.const 12)) (i32.const 0) (i32.const 1) (i32.const 8)))
        (br_if $end (i32.eqz (i32.load (i32.const 8))))
        (i32.store (i32.const 4) (i32.load (i32.const 8)))
        (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
        (br $next)))))
