! A planet on its orbit, with checkpoints where the program wants them. orbit [ROUNDS]
!
!   gfortran ../include/stillpoint.f90 orbit.f90 -o orbit -L$LIB -lstillpoint -Wl,-rpath,$LIB
!   stillpoint run -- ./orbit                 the same program runs without Stillpoint: ./orbit
!
! It prints `result` and numbers that are the same however often it was restarted.
module around
  use, intrinsic :: iso_c_binding
  implicit none
  integer(c_int), target, save :: calls(3) = 0
contains
  function before(argument) bind(c) result(code)
    type(c_ptr), value :: argument
    integer(c_int) :: code
    integer(c_int), pointer :: n(:)
    call c_f_pointer(argument, n, [3])
    n(1) = n(1) + 1
    code = 0
  end function

  subroutine after(argument) bind(c)
    type(c_ptr), value :: argument
    integer(c_int), pointer :: n(:)
    call c_f_pointer(argument, n, [3])
    n(2) = n(2) + 1
  end subroutine

  subroutine restarted(argument) bind(c)
    type(c_ptr), value :: argument
    integer(c_int), pointer :: n(:)
    call c_f_pointer(argument, n, [3])
    n(3) = n(3) + 1
  end subroutine
end module around

program orbit
  use, intrinsic :: iso_c_binding
  use, intrinsic :: iso_fortran_env, only: output_unit
  use stillpoint
  use around
  implicit none
  integer, parameter :: steps = 20000, every = 100
  real(c_double), allocatable, target :: trace(:)
  real(c_double) :: place(2), speed(2), force(2)
  integer :: rounds, round, i
  integer(c_int) :: code
  character(len=32) :: word

  rounds = 1000
  if (command_argument_count() > 0) then
    call get_command_argument(1, word)
    read (word, *) rounds
  end if
  code = stillpoint_on_checkpoint(c_funloc(before), c_funloc(after), c_funloc(restarted), c_loc(calls))
  if (code /= 0) error stop 'no callbacks'

  ! The trace of one round is worth nothing in the next: it stays out of the images.
  allocate (trace(steps))
  code = stillpoint_exclude(c_loc(trace), int(steps, c_size_t) * 8)

  place = [1d0, 0d0]
  speed = [0d0, 0.8d0]
  do round = 1, rounds
    do i = 1, steps
      force = -place / sum(place**2)**1.5d0
      speed = speed + 1d-4 * force
      place = place + 1d-4 * speed
      trace(i) = sum(place**2)
    end do
    if (mod(round, every) == 0) then
      code = stillpoint_checkpoint()
      select case (code)
      case (0)
        print '(a, i0, a)', 'round ', round, ': checkpoint'
      case (1)
        print '(a, i0, a)', 'round ', round, ': restarted'
      case default
        print '(a, i0, a, i0)', 'round ', round, ': no checkpoint, code ', code
      end select
      flush (output_unit)
    end if
  end do

  if (calls(1) /= calls(2) + calls(3)) error stop 'callbacks do not match'
  print '(a, i0, a, i0)', 'callbacks ', calls(1), ' restarted ', calls(3)
  print '(a, 3es25.16)', 'result ', place, maxval(trace)
  print '(a)', 'EXIT-SUCCESS'
end program orbit
