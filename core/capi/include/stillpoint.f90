! What a Fortran program may say about its own checkpoints: the functions of stillpoint.h, which says what they do.
! Compile this file with the program's compiler, then `use stillpoint`; link with -lstillpoint.
!
! Lengths are in bytes: stillpoint_exclude(c_loc(a), int(size(a), c_size_t) * storage_size(a) / 8) for an `a` that is target.
! Callbacks are bind(c) procedures that take one type(c_ptr), by value; c_null_funptr stands for none.
module stillpoint
  use, intrinsic :: iso_c_binding, only: c_int, c_size_t, c_ptr, c_funptr
  implicit none
  private :: c_int, c_size_t, c_ptr, c_funptr

  interface
    function stillpoint_active() bind(c) result(yes)
      import :: c_int
      integer(c_int) :: yes
    end function

    function stillpoint_checkpoint() bind(c) result(code)
      import :: c_int
      integer(c_int) :: code
    end function

    function stillpoint_forbid() bind(c) result(code)
      import :: c_int
      integer(c_int) :: code
    end function

    function stillpoint_allow() bind(c) result(code)
      import :: c_int
      integer(c_int) :: code
    end function

    function stillpoint_exclude(address, length) bind(c) result(code)
      import :: c_int, c_size_t, c_ptr
      type(c_ptr), value :: address
      integer(c_size_t), value :: length
      integer(c_int) :: code
    end function

    function stillpoint_include(address, length) bind(c) result(code)
      import :: c_int, c_size_t, c_ptr
      type(c_ptr), value :: address
      integer(c_size_t), value :: length
      integer(c_int) :: code
    end function

    function stillpoint_on_checkpoint(before, after, restarted, argument) bind(c) result(code)
      import :: c_int, c_ptr, c_funptr
      type(c_funptr), value :: before, after, restarted
      type(c_ptr), value :: argument
      integer(c_int) :: code
    end function

    function stillpoint_restarts() bind(c) result(count)
      import :: c_int
      integer(c_int) :: count
    end function

    function stillpoint_checkpoints() bind(c) result(count)
      import :: c_int
      integer(c_int) :: count
    end function
  end interface
end module stillpoint
