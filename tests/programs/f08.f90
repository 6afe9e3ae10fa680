! Fortran 2008: `use mpi_f08`, a derived type as an MPI type, a user operation, a subarray. f08 [ROUNDS]
module particles
  use mpi_f08
  use iso_c_binding
  implicit none
  type, bind(c) :: particle
    real(c_double) :: x
    integer(c_int) :: id, weight
  end type
contains
  subroutine heavier(invec, inoutvec, length, kind)
    type(c_ptr), value :: invec, inoutvec
    integer :: length
    type(MPI_Datatype) :: kind
    type(particle), pointer :: a(:), b(:)
    integer :: i
    call c_f_pointer(invec, a, [length])
    call c_f_pointer(inoutvec, b, [length])
    do i = 1, length
      if (a(i)%weight > b(i)%weight) b(i) = a(i)
    end do
  end subroutine
end module
program f08
  use particles
  implicit none
  type(MPI_Datatype) :: bare, kind
  type(MPI_Op) :: op
  type(MPI_Comm) :: line
  type(MPI_Status) :: status
  type(particle) :: mine(3), best(3), got(3)
  integer :: rank, ranks, rounds, round, i, next, previous, total
  integer(kind=8) :: sum
  integer(MPI_ADDRESS_KIND) :: places(3), low
  character(len=32) :: word
  call MPI_Init()
  call get_command_argument(1, word)
  rounds = 100
  if (len_trim(word) > 0) read (word, *) rounds
  call MPI_Comm_dup(MPI_COMM_WORLD, line)
  call MPI_Comm_rank(line, rank)
  call MPI_Comm_size(line, ranks)
  call MPI_Get_address(mine(1), low)
  call MPI_Get_address(mine(1)%id, places(2))
  call MPI_Get_address(mine(1)%weight, places(3))
  places = [0_MPI_ADDRESS_KIND, places(2) - low, places(3) - low]
  call MPI_Type_create_struct(3, [1, 1, 1], places, [MPI_DOUBLE_PRECISION, MPI_INTEGER, MPI_INTEGER], bare)
  call MPI_Type_create_resized(bare, 0_MPI_ADDRESS_KIND, int(sizeof(mine(1)), MPI_ADDRESS_KIND), kind)
  call MPI_Type_commit(kind)
  call MPI_Op_create(heavier, .true., op)
  next = mod(rank + 1, ranks)
  previous = mod(rank + ranks - 1, ranks)
  sum = 0
  do round = 1, rounds
    do i = 1, 3
      mine(i) = particle(rank + round * 0.5d0, rank, mod(rank * 7 + round * i, 11) * ranks + rank)
    end do
    call MPI_Allreduce(mine, best, 3, kind, op, line)
    call MPI_Sendrecv(mine, 3, kind, next, 3, got, 3, kind, previous, 3, line, status)
    call MPI_Allreduce(best(1)%weight, total, 1, MPI_INTEGER, MPI_MAX, line)
    if (total /= best(1)%weight .or. any(got%id /= previous) .or. status%MPI_SOURCE /= previous) error stop "wrong message"
    if (any(best%weight < mine%weight) .or. any(mod(best%weight, ranks) /= best%id)) error stop "wrong reduction"
    if (any(best%x /= best%id + round * 0.5d0)) error stop "wrong real"
    do i = 1, 3
      sum = mod(sum * 31 + best(i)%weight, 1000000007_8)
    end do
    call execute_pause()
  end do
  call MPI_Op_free(op)
  call MPI_Type_free(kind)
  call MPI_Type_free(bare)
  call MPI_Comm_free(line)
  call MPI_Finalize()
  if (rank == 0) print '(a,z16.16)', "result ", sum
  if (rank == 0) print '(a)', "EXIT-SUCCESS"
contains
  subroutine execute_pause()
    interface
      integer(c_int) function usleep(microseconds) bind(c)
        import :: c_int
        integer(c_int), value :: microseconds
      end function
    end interface
    integer(c_int) :: ignored
    ignored = usleep(1000_c_int)
  end subroutine
end program
